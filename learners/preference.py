"""The preference learner: one rank's DPO-style steps on pairs laid out as a SampleBatch.

In: pairs (group = pair, sample index 0 chosen, 1 rejected) and the reference's log-probs. Out: metrics. Everything
else (log-probs, weights, state, export) it shares with the policy's learner. Left out: the losses themselves.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
import torch

from actors.forward import PackedTensors, token_logprobs
from actors.packing import MicroBatch
from actors.types import SampleBatch
from learners.engine import TrainEngine
from learners.experience import packed_index, pad
from learners.method import PreferenceSettings, StepInputs, UpdateResult, UpdateSettings
from learners.policy import PolicyBase, step_metrics
from learners.preference_losses import LOSSES, Pairs, kto_baseline, preference_loss
from learners.stepping import optimise


class PreferenceLearner(PolicyBase):
    """One rank of a policy's learner group under a preference loss."""

    def __init__(self, engine: TrainEngine, settings: PreferenceSettings, update: UpdateSettings) -> None:
        super().__init__(engine, update, temperature=1.0)
        self._settings = settings

    def update(self, inputs: StepInputs, show_rows: tuple[int, ...] = ()) -> UpdateResult:
        """One optimiser step on all pairs of the batch."""
        start = time.monotonic()
        batch = inputs.batch
        reference = None if inputs.reference is None else torch.from_numpy(np.array(inputs.reference, np.float32))
        pairs = len(batch) // 2

        def micro_loss(packed: PackedTensors, micro: MicroBatch) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
            flat, _ = token_logprobs(self._engine.module, packed)
            index_BT = packed_index(micro)
            sums_B = pad(flat.cpu(), index_BT).sum(dim=1)
            ref_B = None
            if reference is not None:
                ref_B = pad(reference[torch.from_numpy(micro.slots)], index_BT).sum(dim=1)
            chosen, rejected = _sides(batch.group_rows[micro.rows], batch.sample_indices[micro.rows])
            counts = torch.from_numpy(micro.row_lengths)
            pairs_P = Pairs(
                chosen_P=sums_B[chosen],
                rejected_P=sums_B[rejected],
                ref_chosen_P=None if ref_B is None else ref_B[chosen],
                ref_rejected_P=None if ref_B is None else ref_B[rejected],
                chosen_tokens_P=counts[chosen],
                rejected_tokens_P=counts[rejected],
            )
            return preference_loss(pairs_P, self._settings, total_pairs=pairs, baseline=inputs.kto_baseline)

        # A pair must not be cut apart: a tree is a pair, so the budget is at least the longest.
        longest = int(np.max([len(batch.prompt_of(r)) for r in range(len(batch))]) + 2 * batch.lengths.max())
        budget = max(self._update.micro_batch_tokens, longest)
        result, metrics = optimise(self._engine, batch, list(range(len(batch))), budget, micro_loss)
        return UpdateResult(
            metrics=metrics | step_metrics(result),
            applied=result.applied,
            skipped=int(not result.applied),
            seconds=time.monotonic() - start,
        )

    def margins(self, inputs: StepInputs) -> np.ndarray:
        """float64 [pairs], the loss's own reward margins beta (u - v); lp is `inputs.old`."""
        batch, method = inputs.batch, LOSSES[self._settings.loss]
        sums = _row_sums(inputs.old - inputs.reference if method.reference else inputs.old, batch)
        rewards = self._settings.beta * (sums / np.maximum(batch.lengths, 1) if method.averaged else sums)
        chosen, rejected = _sides(batch.group_rows, batch.sample_indices)
        return rewards[chosen.numpy()] - rewards[rejected.numpy()]

    def kto_baseline(self, inputs: StepInputs) -> float:
        """KTO's reference point, from samples that stand after another prompt than their own."""
        lp_R, ref_R = (torch.from_numpy(_row_sums(column, inputs.batch)) for column in (inputs.old, inputs.reference))
        return float(kto_baseline(lp_R, ref_R))


def _row_sums(column: np.ndarray, batch: SampleBatch) -> np.ndarray:
    """float64 [B] sums over each row's tokens. reduceat gives an empty row its neighbour's first value."""
    sums = np.add.reduceat(np.append(column.astype(np.float64), 0.0), batch.offsets[:-1])
    return np.where(batch.lengths > 0, sums, 0.0)


def _sides(groups: np.ndarray, sides: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Row indices of the chosen and of the rejected responses, pair by pair. ValueError for a pair without a side."""
    order = np.lexsort((sides, groups))
    chosen, rejected = order[0::2].copy(), order[1::2].copy()
    if len(chosen) != len(rejected) or (groups[chosen] != groups[rejected]).any():
        raise ValueError("a pair came without its chosen or its rejected response; give both sides of every pair")
    return torch.from_numpy(chosen), torch.from_numpy(rejected)
