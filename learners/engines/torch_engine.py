"""The plain twin of the DeepSpeed engine: one rank, torch alone, the same meaning word for word.

In: any module (a Hugging Face causal LM, or a trunk with a value head) and the settings. Out: a TrainEngine. It is the
reference that the contract tests hold DeepSpeed against, and the engine for machines without DeepSpeed. Left out: more
than one rank, sharding, offload.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import PreTrainedModel

from learners.engines import training_state
from learners.engines.interface import StepResult
from learners.engines.optimizer import (
    MasterAdamW,
    NamedParameter,
    check_settings,
    clip_factor,
    scale_gradients,
    set_learning_rates,
    squared_norm,
)
from learners.engines.saving import Write, write_now
from learners.engines.settings import OptimizerSettings
from learners.engines.share_layout import Layout, whole

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def cast_parameters(module: torch.nn.Module, dtype: torch.dtype) -> None:
    """Parameters to `dtype`; buffers keep theirs (rotary frequencies must stay float32)."""
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype)


def enable_gradient_checkpointing(module: torch.nn.Module) -> None:
    """Recompute activations in the backward for every transformers model inside `module`."""
    models = [m for m in module.modules() if isinstance(m, PreTrainedModel)]
    if not models:
        raise ValueError("gradient_checkpointing needs a transformers model inside the module; turn it off")
    models[0].gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def in_buckets(parameters: list[NamedParameter], max_bytes: int, element_bytes: int) -> Iterator[list[NamedParameter]]:
    """Consecutive runs of at most `max_bytes`; one parameter alone may exceed it."""
    run: list[NamedParameter] = []
    held = 0
    for p in parameters:
        size = math.prod(p.shape) * element_bytes
        if run and held + size > max_bytes:
            yield run
            run, held = [], 0
        run.append(p)
        held += size
    if run:
        yield run


class TorchEngine:
    """See `learners.engines.interface.TrainEngine`."""

    def __init__(
        self,
        module: torch.nn.Module,
        *,
        optimizer: OptimizerSettings,
        dtype: str,
        device: torch.device,
        gradient_checkpointing: bool = False,
    ) -> None:
        check_settings(optimizer)
        cast_parameters(module, DTYPES[dtype])
        if gradient_checkpointing:
            enable_gradient_checkpointing(module)
        self.module = module.to(device)
        self.device = device
        self.rank = 0
        self.world_size = 1
        self.steps = 0
        self._settings = optimizer
        self._dtype = dtype
        self._all = [NamedParameter(n, p, tuple(p.shape)) for n, p in module.named_parameters()]
        self._trainable = [p for p in self._all if p.parameter.requires_grad]
        self._adamw = MasterAdamW(self._trainable, optimizer)
        self._loss_finite = torch.ones((), dtype=torch.bool, device=device)

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        self._loss_finite &= torch.isfinite(loss.detach()).all()
        loss.backward()

    def step(self) -> StepResult:
        gradients = self._adamw.gradients()
        norm = squared_norm(gradients, self.device).sqrt().item()
        applied = bool(self._loss_finite) and math.isfinite(norm)
        lr = set_learning_rates(self._adamw.param_groups, self._settings, self.steps)
        if applied:
            scale_gradients(gradients, clip_factor(norm, self._settings.max_grad_norm))
            self._adamw.step()
            self.steps += 1
        self._adamw.drop_gradients()
        self._loss_finite.fill_(True)
        return StepResult(applied, norm, lr)

    def full_parameters(self, max_bytes: int, *, trained: bool = False) -> Iterator[list[tuple[str, torch.Tensor]]]:
        for bucket in in_buckets(self._trainable if trained else self._all, max_bytes, DTYPES[self._dtype].itemsize):
            yield [(p.name, p.parameter.detach()) for p in bucket]

    def save(self, directory: Path, write: Write = write_now) -> None:
        training_state.write_tensors(directory, 0, self._adamw.masters, self._adamw, self._layout(), write)
        training_state.write_facts(directory, self._facts(), self.steps, shares=1)

    def load(self, directory: Path) -> None:
        masters = self._adamw.masters
        steps, saved = training_state.read_share(directory, self._facts(), 0, self._layout(), masters)
        training_state.put_tensors(saved, masters, self._adamw)
        self._adamw.write_back()
        self._adamw.drop_gradients()
        self.steps = steps

    def close(self) -> None:
        self._adamw.state.clear()
        self._adamw.drop_gradients()

    def _layout(self) -> Layout:
        return whole((name, master.numel()) for name, master in self._adamw.masters.items())

    def _facts(self) -> dict[str, object]:
        shapes = training_state.model_digest((p.name, p.shape) for p in self._trainable)
        return {"engine": "torch", "model": shapes, "dtype": self._dtype, "world_size": 1, "zero_stage": 0}
