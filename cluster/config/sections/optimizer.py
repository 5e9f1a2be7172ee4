"""What every trained model has: its `optimizer` and its `zero` section. Data only.

In: nothing. Out: pydantic models. Left out: what must hold between their keys (cluster/config/rules/general.py).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from cluster.config.sections.section import Fraction, NonNegative, Positive, Section


class Zero(Section):
    """DeepSpeed ZeRO."""

    stage: Literal[0, 1, 2, 3] = 0
    """What is sharded over the ranks: 0 nothing, 1 optimiser state, 2 gradients too, 3 parameters too."""
    offload_optimizer: Literal["none", "cpu", "nvme"] = "none"
    """Keep optimiser state in host memory (`cpu`); `nvme` is refused."""
    offload_parameters: Literal["none", "cpu", "nvme"] = "none"
    """Keep parameters in host memory (`cpu`, stage 3); `nvme` is refused."""


class Optimizer(Section):
    """AdamW with warm-up and a schedule."""

    lr: NonNegative = 1e-6
    """Learning rate after the warm-up."""
    head_lr: Positive | None = None
    """Critic and reward model: learning rate of the head (default: lr)."""
    betas: Annotated[tuple[Fraction, Fraction], Field(strict=False)] = (0.9, 0.95)
    """AdamW's decay rates of the two moments."""
    eps: Positive = 1e-8
    """AdamW's epsilon."""
    weight_decay: NonNegative = 0.0
    """AdamW's decoupled weight decay."""
    max_grad_norm: Positive = 1.0
    """Gradients are scaled down to this norm, taken over all parameters and ranks."""
    warmup_steps: int = Field(default=0, ge=0)
    """Optimiser steps over which the learning rate rises from zero."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate falls after the warm-up, until the last step."""
    min_lr_ratio: Fraction = 0.0
    """Where it falls to, as a share of `lr`."""
    freeze_steps: int = Field(default=0, ge=0)
    """Hold the parameters for the first steps (the policy's, while the critic warms up)."""
