"""One optimiser step over some rows of a batch: forwards, losses and backwards micro-batch by micro-batch.

In: an engine, a batch, rows, and a function from a packed row to a globally normalised loss. Out: the step's result
and its metrics, summed over micro-batches and ranks. Left out: what the loss is (policy.py, critic.py, preference.py).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.distributed as dist

from actors.models.forward import PackedTensors, to_tensors
from actors.models.packing import MicroBatch, micro_batches, padding
from actors.types import SampleBatch
from learners.engines.interface import StepResult, TrainEngine

MicroLoss = Callable[[PackedTensors, MicroBatch], tuple[torch.Tensor, Mapping[str, torch.Tensor]]]


def optimise(
    engine: TrainEngine, batch: SampleBatch, rows: Sequence[int], max_tokens: int, micro_loss: MicroLoss
) -> tuple[StepResult, dict[str, float]]:
    """Accumulate the gradient of the rows' loss over this rank's share and step once."""
    shares = micro_batches(batch, rows, max_tokens, rank=engine.rank, ranks=engine.world_size)
    # A rank with fewer micro-batches forwards the first pair again, weighed zero: ZeRO's collectives stay in step.
    filler = [row for row in rows if batch.group_rows[row] == batch.group_rows[rows[0]]][:2]
    sums: dict[str, torch.Tensor] = {}
    for i, micro in enumerate(shares):
        real = micro if micro is not None else padding(batch, filler, max_tokens)
        loss, metrics = micro_loss(to_tensors(real, engine.device), real)
        if micro is None:
            loss = loss * 0.0
        else:
            for name, value in metrics.items():
                sums[name] = sums.get(name, torch.zeros((), dtype=torch.float64)) + value.double().cpu()
        engine.backward(loss, last=i == len(shares) - 1)
    result = engine.step()
    return result, sum_over_ranks(sums, engine)


def sum_over_ranks(sums: Mapping[str, torch.Tensor], engine: TrainEngine) -> dict[str, float]:
    """Additive metrics of all ranks. Ranks without a micro-batch have no names of their own: they are gathered."""
    if engine.world_size == 1:
        return {name: float(value) for name, value in sums.items()}
    gathered: list[dict[str, float] | None] = [None] * engine.world_size
    dist.all_gather_object(gathered, {name: float(value) for name, value in sums.items()})
    total: dict[str, float] = {}
    for part in gathered:
        for name, value in (part or {}).items():
            total[name] = total.get(name, 0.0) + value
    return total


def gather_known(values: np.ndarray, engine: TrainEngine) -> np.ndarray:
    """Each value from the rank that knows it; NaN means unknown. Collective."""
    if engine.world_size == 1:
        return values
    gathered = [values] * engine.world_size  # places for what comes
    dist.all_gather_object(gathered, values)
    return functools.reduce(lambda known, other: np.where(np.isnan(known), other, known), gathered)


class RunningMean:
    """Means of metrics over the optimiser steps of an update. A step that was skipped has none that is finite: such
    values are left out, and a metric that never was finite is NaN."""

    def __init__(self) -> None:
        self._finite: dict[str, list[float]] = {}

    def add(self, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            seen = self._finite.setdefault(name, [])
            if math.isfinite(value):
                seen.append(value)

    def means(self) -> dict[str, float]:
        return {name: math.fsum(seen) / len(seen) if seen else math.nan for name, seen in self._finite.items()}
