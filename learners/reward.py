"""The reward model's learner: one rank's steps on preference pairs or on rated responses.

In: pairs laid out as a SampleBatch (margins as the chosen rows' scores) or single responses with ratings as scores.
Out: scores of rows, metrics, files. Every method is collective. Left out: using a trained model as a scorer
(actors/models/reward_model.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from actors.models.forward import PackedTensors, to_tensors
from actors.models.packing import MicroBatch, micro_batches, padding
from actors.types import SampleBatch
from learners.base import LearnerBase
from learners.engines.interface import TrainEngine, unwrapped
from learners.methods.method import StepInputs, TokenColumn, UpdateResult, UpdateSettings
from learners.methods.preference_losses import reward_model_loss
from learners.methods.presets import RewardModelSettings
from learners.preference import longest_pair, sides
from learners.stepping import MicroLoss

PREFIX = "classifier."
"""Of every parameter's name in `models.RewardNetwork`."""


class RewardLearner(LearnerBase):
    """One rank of a reward model's learner group; the engine's module is a `models.RewardNetwork`."""

    def __init__(self, engine: TrainEngine, settings: RewardModelSettings, update: UpdateSettings) -> None:
        super().__init__(engine, update)
        self._settings = settings

    @property
    def config_changes(self) -> Mapping[str, Any]:
        name = type(unwrapped(self._engine.module).classifier).__name__
        return {"architectures": [name], "id2label": {"0": "reward"}, "label2id": {"reward": 0}}

    def full_parameters(self, max_bytes: int) -> Iterator[list[tuple[str, torch.Tensor]]]:
        for part in super().full_parameters(max_bytes):
            yield [(name.removeprefix(PREFIX), tensor) for name, tensor in part]

    @torch.no_grad()
    def row_scores(self, batch: SampleBatch) -> TokenColumn:
        """This rank's share of the rows' scores; `slots` are rows."""
        budget, rows = self._update.micro_batch_tokens, list(range(len(batch)))
        shares = micro_batches(batch, rows, budget, rank=self._engine.rank, ranks=self._engine.world_size)
        found, scores = [np.zeros(0, np.int64)], [np.zeros(0, np.float32)]
        for micro in shares:
            real = micro if micro is not None else padding(batch, rows[:1], budget)
            out = self._scores(to_tensors(real, self._engine.device), real)
            if micro is not None:
                found.append(micro.rows)
                scores.append(out.numpy())
        return TokenColumn(np.concatenate(found), np.concatenate(scores))

    def _scores(self, packed: PackedTensors, micro: MicroBatch) -> torch.Tensor:
        return self._engine.module(packed, torch.from_numpy(micro.row_ends).to(self._engine.device)).cpu()

    def update(self, inputs: StepInputs, show_rows: tuple[int, ...] = ()) -> UpdateResult:
        """One optimiser step on all rows of the batch."""
        batch = inputs.batch
        loss = self._rating_loss(inputs) if self._settings.ratings else self._pair_loss(inputs)
        return self._one_step(batch, loss, max_tokens=max(self._update.micro_batch_tokens, longest_pair(batch)))

    def _pair_loss(self, inputs: StepInputs) -> MicroLoss:
        batch = inputs.batch
        margins_B = torch.from_numpy(np.array(inputs.scores.values, np.float32))

        def micro_loss(packed: PackedTensors, micro: MicroBatch) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
            scores_B = self._scores(packed, micro)
            chosen, rejected = sides(batch.group_rows[micro.rows], batch.sample_indices[micro.rows])
            return reward_model_loss(
                scores_B[chosen],
                scores_B[rejected],
                margin_P=margins_B[torch.from_numpy(micro.rows)[chosen]],
                centre_coef=self._settings.centre_coef,
                total_pairs=len(batch) // 2,
            )

        return micro_loss

    def _rating_loss(self, inputs: StepInputs) -> MicroLoss:
        ratings_B = torch.from_numpy(np.array(inputs.scores.values, np.float32))

        def micro_loss(packed: PackedTensors, micro: MicroBatch) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
            scores_B = self._scores(packed, micro)
            return rating_loss(scores_B, ratings_B[torch.from_numpy(micro.rows)], total_rows=len(inputs.batch))

        return micro_loss


def rating_loss(
    scores_R: torch.Tensor, ratings_R: torch.Tensor, *, total_rows: float | None = None
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """mean((r - rating)^2): regression on numbers that people gave. total_rows: of the whole global mini-batch (None:
    these are all). Metrics, additive: loss, rewards/mean."""
    total = max(float(len(scores_R)) if total_rows is None else total_rows, 1.0)
    loss = (scores_R - ratings_R.detach()).square().sum() / total
    return loss, {"loss": loss.detach(), "rewards/mean": scores_R.detach().sum() / total}
