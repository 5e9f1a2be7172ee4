"""The policy's learner under a policy-gradient method: one rank's updates.

In: columns of a step. Out: metrics and details of samples to show. Every method is collective. Left out: log-probs,
weights and state (base.py), the engine (ZeRO), the maths (losses, advantages), Ray.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
import torch

from actors.models.forward import Barred, PackedTensors, token_logprobs
from actors.models.packing import MicroBatch
from actors.response_mask import response_mask
from learners.base import PolicyBase, step_metrics
from learners.engines.interface import TrainEngine
from learners.experience import Experience, build_experience, minibatch_rows, packed_index, pad, slot_index
from learners.methods.aggregation import BatchTotals, batch_totals
from learners.methods.kl import kl_tokens
from learners.methods.method import Method, StepInputs, TokenDetails, UpdateResult, UpdateSettings, needs_old
from learners.methods.policy_losses import policy_loss
from learners.stepping import MicroLoss, RunningMean, gather_known, optimise


class PolicyLearner(PolicyBase):
    """One rank of the policy's learner group under a policy-gradient method."""

    def __init__(
        self, engine: TrainEngine, method: Method, update: UpdateSettings, barred: Barred | None = None
    ) -> None:
        super().__init__(engine, update, method.temperature, barred)
        self._method = method

    def update(self, inputs: StepInputs, show_rows: tuple[int, ...] = ()) -> UpdateResult:
        """Policy-gradient steps on one batch; per-token details of `show_rows`. Beside the loss's own metrics:
        kl/ref_sequence, k1 (`steady_kl`) of the policy before the update to the reference, summed over a response, mean
        over responses in nats: what an adaptive controller reads; policy/rows_trained."""
        start = time.monotonic()
        if inputs.old is None and needs_old(self._method, self._update):
            raise ValueError(
                f"{self._update.passes} passes over a batch, or a KL in the reward, need the log-probs from before the "
                "update; pass them as old"
            )
        experience = build_experience(inputs, self._method)
        means, skipped, steps = RunningMean(), 0, 0
        seen = np.full(len(inputs.batch.token_ids), np.nan, np.float32)
        for epoch in range(self._update.epochs):
            parts = minibatch_rows(experience, epoch, self._update.minibatches, self._update.seed + inputs.step)
            for rows in parts:
                totals = batch_totals(experience.mask_BT[torch.from_numpy(rows)])
                loss = self._loss(experience, totals, seen)
                result, metrics = optimise(
                    self._engine, inputs.batch, rows.tolist(), self._update.micro_batch_tokens, loss
                )
                steps += 1
                skipped += not result.applied
                means.add(metrics | step_metrics(result))
        metrics = means.means() if steps else {}
        if experience.sequence_kl_B is not None and len(experience.kept_rows):
            metrics["kl/ref_sequence"] = float(experience.sequence_kl_B[experience.kept_rows].mean())
        metrics["policy/rows_trained"] = float(len(experience.kept_rows))
        return UpdateResult(
            metrics=metrics,
            applied=steps == 0 or skipped < steps,
            skipped=skipped,
            seconds=time.monotonic() - start,
            details=self._details(experience, seen, show_rows),
        )

    def _details(
        self, experience: Experience, seen: np.ndarray, show_rows: tuple[int, ...]
    ) -> tuple[TokenDetails, ...]:
        """Log-probs are those that the last pass saw; NaN where a row was not trained on, and on tokens of the
        environment."""
        if not show_rows:
            return ()
        slots = [slot_index(experience.batch, np.array([row]))[0].numpy() for row in show_rows]
        known = gather_known(seen[np.concatenate(slots)], self._engine)
        cuts = np.cumsum([len(s) for s in slots])[:-1]
        return tuple(
            _details(experience, row, mine) for row, mine in zip(show_rows, np.split(known, cuts), strict=True)
        )

    def _loss(self, experience: Experience, totals: BatchTotals, seen: np.ndarray) -> MicroLoss:
        preset = self._method.preset

        def micro_loss(packed: PackedTensors, micro: MicroBatch) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
            flat_lp, flat_entropy = token_logprobs(self._engine.module, packed, self._temperature, self._barred)
            flat_lp, flat_entropy = flat_lp.cpu(), flat_entropy.cpu()
            seen[micro.slots] = flat_lp.detach().numpy()
            rows = torch.from_numpy(micro.rows)
            index_BT = packed_index(micro)
            width = index_BT.shape[1]

            def part(column_BT: torch.Tensor) -> torch.Tensor:
                return column_BT[rows, :width]

            lp_BT = pad(flat_lp, index_BT)
            return policy_loss(
                lp_BT,
                lp_BT.detach() if experience.old_BT is None else part(experience.old_BT),
                part(experience.advantages_BT),
                part(experience.mask_BT),
                preset.loss,
                roll=part(experience.roll_BT),
                ref=None if experience.ref_BT is None else part(experience.ref_BT),
                entropy=pad(flat_entropy, index_BT),
                totals=totals,
            )

        return micro_loss


def _details(experience: Experience, row: int, logprobs: np.ndarray) -> TokenDetails:
    """Of the policy's own tokens; the environment's have numbers that say nothing, and are shown without."""
    n, sample = len(logprobs), experience.batch.sample(row)
    mask = response_mask(sample)
    logprobs = np.where(mask, logprobs, np.nan)
    token_kl = None
    if experience.ref_BT is not None:
        token_kl = kl_tokens(torch.from_numpy(logprobs), experience.ref_BT[row, :n], "k3").numpy()
    values = None if experience.values_BT is None else np.where(mask, experience.values_BT[row, :n].numpy(), np.nan)
    advantages = experience.advantages_BT[row, :n].float().numpy()
    return TokenDetails(row, sample, logprobs, token_kl, advantages, values)
