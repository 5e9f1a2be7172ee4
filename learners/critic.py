"""The critic's learner: one rank's values and value-loss steps.

In: columns of a step. Out: values on the T axis, metrics, files. Every method is collective. Left out: the policy.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from actors.models.forward import PackedTensors, to_tensors
from actors.models.packing import MicroBatch, micro_batches, padding
from actors.types import SampleBatch
from learners.engines.interface import TrainEngine
from learners.engines.saving import Write, write_now
from learners.experience import Experience, build_experience, minibatch_rows, packed_index, pad
from learners.methods.aggregation import BatchTotals, batch_totals
from learners.methods.method import Method, StepInputs, TokenColumn, UpdateResult, UpdateSettings, required
from learners.methods.value_loss import EXPLAINED_VARIANCE_SUMS, explained_variance, value_loss
from learners.stepping import MicroLoss, RunningMean, optimise


class CriticLearner:
    """One rank of the critic's learner group; the engine's module is a `models.ValueModel`."""

    def __init__(self, engine: TrainEngine, method: Method, update: UpdateSettings) -> None:
        self._engine = engine
        self._method = method
        self._update = update

    @torch.no_grad()
    def values(self, batch: SampleBatch) -> TokenColumn:
        """This rank's share of the values for deciding each response token."""
        budget = self._update.micro_batch_tokens
        rows = list(range(len(batch)))
        shares = micro_batches(batch, rows, budget, rank=self._engine.rank, ranks=self._engine.world_size)
        slots, values = [np.zeros(0, np.int64)], [np.zeros(0, np.float32)]
        for micro in shares:
            real = micro if micro is not None else padding(batch, rows[:1], budget)
            out = self._engine.module(to_tensors(real, self._engine.device))
            if micro is not None:
                slots.append(micro.slots)
                values.append(out.cpu().numpy())
        return TokenColumn(np.concatenate(slots), np.concatenate(values))

    def update(self, inputs: StepInputs) -> UpdateResult:
        """Value-loss steps on one batch."""
        start = time.monotonic()
        experience = build_experience(inputs, self._method)
        means, skipped, steps = RunningMean(), 0, 0
        for epoch in range(self._update.epochs):
            parts = minibatch_rows(experience, epoch, self._update.minibatches, self._update.seed + inputs.step)
            for rows in parts:
                totals = batch_totals(experience.mask_BT[torch.from_numpy(rows)])
                result, sums = optimise(
                    self._engine,
                    inputs.batch,
                    rows.tolist(),
                    self._update.micro_batch_tokens,
                    self._loss(experience, totals),
                )
                steps += 1
                skipped += not result.applied
                metrics = {name: value for name, value in sums.items() if name not in EXPLAINED_VARIANCE_SUMS}
                metrics |= {"value/explained_variance": explained_variance(sums), "value/grad_norm": result.grad_norm}
                means.add(metrics)
        return UpdateResult(
            metrics=means.means() if steps else {},
            applied=steps == 0 or skipped < steps,
            skipped=skipped,
            seconds=time.monotonic() - start,
        )

    def _loss(self, experience: Experience, totals: BatchTotals) -> MicroLoss:
        values_BT, returns_BT = required(experience.values_BT, "values"), required(experience.returns_BT, "returns")

        def micro_loss(packed: PackedTensors, micro: MicroBatch) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
            values = self._engine.module(packed).cpu()
            rows = torch.from_numpy(micro.rows)
            index_BT = packed_index(micro)
            width = index_BT.shape[1]
            return value_loss(
                pad(values, index_BT),
                values_BT[rows, :width],
                returns_BT[rows, :width],
                experience.mask_BT[rows, :width],
                self._method.value_clip,
                totals,
            )

        return micro_loss

    def save(self, directory: Path, write: Write = write_now) -> None:
        self._engine.save(directory, write)

    def load(self, directory: Path) -> None:
        self._engine.load(directory)
