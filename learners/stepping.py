"""One optimiser step over some rows of a batch: forwards, losses and backwards micro-batch by micro-batch.

In: an engine, a batch, rows, and a function from a packed row to a globally normalised loss. Out: the step's result
and its metrics, summed over micro-batches and ranks. Left out: what the loss is (policy.py, critic.py, preference.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.distributed as dist

from actors.forward import PackedTensors, to_tensors
from actors.packing import MicroBatch, micro_batches
from actors.types import SampleBatch
from learners.engine import StepResult, TrainEngine

MicroLoss = Callable[[PackedTensors, MicroBatch], tuple[torch.Tensor, Mapping[str, torch.Tensor]]]


def optimise(
    engine: TrainEngine, batch: SampleBatch, rows: Sequence[int], max_tokens: int, micro_loss: MicroLoss
) -> tuple[StepResult, dict[str, float]]:
    """Accumulate the gradient of the rows' loss over this rank's share and step once."""
    shares = micro_batches(batch, rows, max_tokens, rank=engine.rank, ranks=engine.world_size)
    sums: dict[str, torch.Tensor] = {}
    for i, micro in enumerate(shares):
        # A rank with fewer micro-batches forwards the first row again, weighed zero: ZeRO's collectives stay in step.
        real = micro if micro is not None else micro_batches(batch, rows[:1], max_tokens)[0]
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


class RunningMean:
    """Means of metrics over the optimiser steps of an update."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._count = 0

    def add(self, metrics: Mapping[str, float]) -> None:
        self._count += 1
        for name, value in metrics.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def means(self) -> dict[str, float]:
        return {name: value / self._count for name, value in self._sums.items()}
