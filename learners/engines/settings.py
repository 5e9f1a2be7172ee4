"""Settings of a model and of the engine that trains it: data only, torch-free, so that the config can make them."""

from __future__ import annotations

from dataclasses import dataclass

from actors.models.lora import LoraSettings


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """How to load one model. layers: keep only the trunk's first so many (None: all). lora: train an adapter and hold
    the rest still (None: train everything)."""

    path: str
    dtype: str = "bfloat16"
    attention: str = "sdpa"
    trust_remote_code: bool = False
    gradient_checkpointing: bool = False
    layers: int | None = None
    lora: LoraSettings | None = None


@dataclass(frozen=True, slots=True)
class ZeroSettings:
    """DeepSpeed's ZeRO: stage 0-3; where the optimiser state (and, stage 3, the parameters) live: none or cpu."""

    stage: int = 0
    offload_optimizer: str = "none"
    offload_parameters: str = "none"


@dataclass(frozen=True, slots=True)
class OptimizerSettings:
    """AdamW. lr is the peak; it warms up linearly over `warmup_steps`, then follows `schedule` ("constant", "linear"
    or "cosine") down to lr * min_lr_ratio at `total_steps`. `head_lr` applies to parameters named `value_head.*`
    (None: lr). Norm and bias parameters (ndim < 2) get no weight decay. `freeze_steps`: first steps, lr 0."""

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
