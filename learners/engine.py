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


@dataclass(frozen=True, slots=True)
class ZeroSettings:
    """DeepSpeed's ZeRO: stage 0-3; where the optimiser state (and, stage 3, the parameters) live: none, cpu or nvme."""

    stage: int = 0
    offload_optimizer: str = "none"
    offload_parameters: str = "none"
    nvme_path: str | None = None


@dataclass(frozen=True, slots=True)
class OptimizerSettings:
    """AdamW. lr is the peak; it warms up linearly over `warmup_steps`, then follows `schedule` ("constant", "linear"
    or "cosine") down to lr * min_lr_ratio at `total_steps`. `head_lr` applies to parameters named `value_head.*`
    (None: lr). Norm and bias parameters (ndim < 2) get no weight decay. `freeze_steps`: steps at the start with lr 0."""

    lr: float = 1e-6
    head_lr: float | None = None
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    warmup_steps: int = 0
    schedule: str = "constant"
    total_steps: int = 1
    min_lr_ratio: float = 0.0
    freeze_steps: int = 0


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

    def full_parameters(self, max_bytes: int) -> Iterator[list[tuple[str, torch.Tensor]]]:
        """Whole parameters by Hugging Face name in `module.named_parameters()` order (tied ones once), in lists of at
        most `max_bytes` (one tensor alone may exceed it), gathered piece by piece; in the model's compute dtype."""

    def save(self, directory: Path) -> None:
        """Write this rank's whole training state (master weights, optimiser, schedule) into `directory`, as
        files that load without pickle of arbitrary objects; rank-independent content once."""

    def load(self, directory: Path) -> None:
        """Restore what `save` wrote, bit for bit. ValueError naming the difference if it is of another model, rank
        count or ZeRO stage."""

    def close(self) -> None:
        """Release memory and the process group if this engine made it."""
