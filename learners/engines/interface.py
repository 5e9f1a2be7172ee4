"""The contract between a learner and whatever holds its parameters and optimiser.

Two implementations pass the same contract tests: `deepspeed_engine.DeepSpeedEngine` (ZeRO 0-3) and
`torch_engine.TorchEngine`, a plain twin for one rank. Losses arrive globally normalised: the gradient applied by
`step` is the sum over micro-batches and ranks of the gradients handed to `backward`, divided by nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from learners.engines.saving import Write, write_now


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one optimiser step did. grad_norm is the global norm before clipping. `applied` is False when the loss or
    gradient was not finite on any rank: then parameters, optimiser state and schedule are untouched and gradients
    are cleared."""

    applied: bool
    grad_norm: float
    lr: float


class TrainEngine(Protocol):
    """One rank's hold on a model. Every method is collective: all ranks call it in the same order."""

    module: torch.nn.Module
    """Call it for forwards (in ZeRO-3 its hooks gather the parameters)."""
    device: torch.device
    rank: int
    world_size: int

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """Accumulate the loss's gradient, in float32 across micro-batches; `last` marks the step's final
        micro-batch. Ranks must make equal numbers of calls."""

    def step(self) -> StepResult:
        """Clip, step the optimiser and the schedule, clear gradients."""

    def full_parameters(self, max_bytes: int, *, trained: bool = False) -> Iterator[list[tuple[str, torch.Tensor]]]:
        """Whole parameters (`trained`: those alone that are) by Hugging Face name in `module.named_parameters()` order
        (tied ones once), in lists of at most `max_bytes` (one tensor alone may exceed it), gathered piece by piece; in
        the model's compute dtype."""

    def save(self, directory: Path, write: Write = write_now) -> None:
        """Write this rank's whole training state (master weights, optimiser, schedule) into `directory`, as
        files that load without pickle of arbitrary objects; rank-independent content once. write: of tensors."""

    def load(self, directory: Path) -> None:
        """Restore what `save` wrote, bit for bit, also with another number of ranks, ZeRO stage or engine: every rank
        then reads its part of all ranks' files. ValueError naming the difference if it is of another model or dtype."""

    def close(self) -> None:
        """Release memory and the process group if this engine made it."""


def unwrapped(module: torch.nn.Module) -> torch.nn.Module:
    """The network inside an engine's wrapper."""
    return getattr(module, "module", module)
