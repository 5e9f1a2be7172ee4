"""The preference learner: one rank's DPO-style steps on pairs, or KTO's on judged responses, laid out as a SampleBatch.

In: pairs (group = pair, sample index 0 chosen, 1 rejected) or single responses with labels, and the reference's
log-probs (row sums that were stored, or a column of tokens). Out: metrics. Everything else (log-probs, weights, state,
export) it shares with other policies' learners. Left out: the losses themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from actors.models.forward import PackedTensors, token_logprobs
from actors.models.packing import MicroBatch
from actors.response_mask import response_mask, row_sums
from actors.types import SampleBatch
from learners.base import PolicyBase
from learners.engines.interface import TrainEngine
from learners.experience import micro_mask, packed_index, pad
from learners.methods.aggregation import masked
from learners.methods.method import StepInputs, TokenDetails, UpdateResult, UpdateSettings, required
from learners.methods.preference_losses import LOSSES, Pairs, kto_baseline, kto_loss, preference_loss
from learners.methods.presets import PreferenceSettings
from learners.stepping import MicroLoss


class PreferenceLearner(PolicyBase):
    """One rank of a policy's learner group under a preference loss."""

    def __init__(
        self, engine: TrainEngine, settings: PreferenceSettings, update: UpdateSettings, temperature: float = 1.0
    ) -> None:
        super().__init__(engine, update, temperature)
        self._settings = settings

    def update(self, inputs: StepInputs, show_rows: tuple[int, ...] = ()) -> UpdateResult:
        """One optimiser step on all rows of the batch."""
        batch = inputs.batch
        loss = self._judged_loss(inputs) if self._settings.judged else self._pair_loss(inputs)
        result = self._one_step(batch, loss, max_tokens=max(self._update.micro_batch_tokens, longest_pair(batch)))
        return replace(result, details=tuple(_details(inputs, row) for row in show_rows))

    def _row_sums(
        self, packed: PackedTensors, micro: MicroBatch, mask: np.ndarray
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(log-probs summed over each row's own tokens, with their gradient; how many those are), [b] each, of the
        micro-batch's rows. mask: the batch's, [T]."""
        flat, _ = token_logprobs(self._engine.module, packed, self._temperature)
        mask_BT = micro_mask(mask, micro)
        return masked(pad(flat.cpu(), packed_index(micro)), mask_BT).sum(dim=1), mask_BT.sum(dim=1)

    def _pair_loss(self, inputs: StepInputs) -> MicroLoss:
        batch, mask = inputs.batch, response_mask(inputs.batch)
        pairs = len(batch) // 2
        chosen_tokens = float(row_sums(mask, batch)[batch.sample_indices == 0, 1].sum())
        reference = reference_sums(inputs)
        ref_B = None if reference is None else torch.from_numpy(reference)

        def micro_loss(packed: PackedTensors, micro: MicroBatch) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
            sums_B, counts_B = self._row_sums(packed, micro, mask)
            rows = torch.from_numpy(micro.rows)
            chosen, rejected = sides(batch.group_rows[micro.rows], batch.sample_indices[micro.rows])
            pairs_P = Pairs(
                chosen_P=sums_B[chosen],
                rejected_P=sums_B[rejected],
                ref_chosen_P=None if ref_B is None else ref_B[rows[chosen]],
                ref_rejected_P=None if ref_B is None else ref_B[rows[rejected]],
                chosen_tokens_P=counts_B[chosen],
                rejected_tokens_P=counts_B[rejected],
            )
            return preference_loss(
                pairs_P,
                self._settings,
                total_pairs=pairs,
                total_chosen_tokens=chosen_tokens,
                baseline=inputs.kto_baseline,
            )

        return micro_loss

    def _judged_loss(self, inputs: StepInputs) -> MicroLoss:
        ref_B, mask = torch.from_numpy(required(reference_sums(inputs), "reference")), response_mask(inputs.batch)
        baseline = required(inputs.kto_baseline, "kto_baseline")
        desirable_B = torch.from_numpy(np.asarray(inputs.scores.values) > 0.5)
        good = float(desirable_B.sum())
        totals = (good, len(desirable_B) - good)

        def micro_loss(packed: PackedTensors, micro: MicroBatch) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
            rows = torch.from_numpy(micro.rows)
            sums_B, _ = self._row_sums(packed, micro, mask)
            return kto_loss(sums_B, ref_B[rows], desirable_B[rows], baseline, self._settings, totals=totals)

        return micro_loss

    def row_rewards(self, inputs: StepInputs) -> np.ndarray:
        """float64 [B], the loss's own implicit rewards, beta u (length-averaged where the loss is); the policy's
        log-probs are `inputs.old`."""
        method = LOSSES[self._settings.loss]
        sums, counts = row_sums(required(inputs.old, "old"), inputs.batch).T
        if method.reference:
            sums = sums - required(reference_sums(inputs), "reference")
        return self._settings.beta * (sums / np.maximum(counts, 1) if method.averaged else sums)

    def kto_baseline(self, inputs: StepInputs) -> float:
        """KTO's reference point, from samples that stand after another prompt than their own."""
        lp_R = torch.from_numpy(row_sums(required(inputs.old, "old"), inputs.batch)[:, 0])
        ref_R = torch.from_numpy(required(reference_sums(inputs), "reference"))
        return float(kto_baseline(lp_R, ref_R))


def _details(inputs: StepInputs, row: int) -> TokenDetails:
    """A sample as the engine made it. Its pair's loss pulls its own tokens up (1) or down (-1): there are no
    advantages."""
    sample = inputs.batch.sample(row)
    mask = response_mask(sample)
    side = np.where(mask, 1.0 if sample.sample_index == 0 else -1.0, 0.0).astype(np.float32)
    return TokenDetails(row, sample, np.where(mask, sample.logprobs, np.nan), None, side, None)


def reference_sums(inputs: StepInputs) -> np.ndarray | None:
    """float64 [B]: the reference's log-probs of each row, stored or summed from its column; None without either."""
    if inputs.row_reference is not None:
        return np.array(inputs.row_reference, np.float64)
    return None if inputs.reference is None else row_sums(inputs.reference, inputs.batch)[:, 0]


def longest_pair(batch: SampleBatch) -> int:
    """Tokens of the longest prompt with two longest responses. A pair must not be cut apart, and a tree is a pair: a
    budget of this many keeps every pair whole."""
    return int(np.max([len(batch.prompt_of(r)) for r in range(len(batch))]) + 2 * batch.lengths.max())


def sides(groups: np.ndarray, indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Row indices of the chosen and of the rejected responses, pair by pair. ValueError for a pair without a side."""
    order = np.lexsort((indices, groups))
    chosen, rejected = order[0::2].copy(), order[1::2].copy()
    if len(chosen) != len(rejected) or (groups[chosen] != groups[rejected]).any():
        raise ValueError("a pair came without its chosen or its rejected response; give both sides of every pair")
    return torch.from_numpy(chosen), torch.from_numpy(rejected)
