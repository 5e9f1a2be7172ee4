"""Adapters inside a transformers model (peft's layers), and an adapter on its way into an engine.

In: a model and LoraSettings, or weight buckets. Out: the model with adapters in place, a switch that turns them off,
their tensors under the names that PEFT's files and vLLM use. Left out: training and merging (learners), vLLM's own
adapter layers (actors/engines/vllm).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from actors.models.lora import LoraSettings
from actors.transports.buckets import tensors_of
from actors.transports.interface import DeviceBucket
from actors.types import WeightBucket

if TYPE_CHECKING:
    from peft import LoraConfig
    from peft.tuners.lora import LoraLayer

ADAPTER = "default"
"""peft's name for the one adapter that there is."""
PREFIX = "base_model.model."
"""Before every module's name in PEFT's files."""


def attach(model: PreTrainedModel, lora: LoraSettings) -> None:
    """Put new adapters into a transformers model, in place, and freeze everything else. A's start depends on
    `lora.seed` alone. ValueError, peft's own, for a target that is not there."""
    from peft import inject_adapter_in_model  # a second of every learner's start, where it is wanted

    trunk = model.base_model
    model.requires_grad_(False)
    config = _peft_config(lora, "all-linear" if lora.targets is None else list(lora.targets))
    with torch.random.fork_rng():
        torch.manual_seed(lora.seed)
        inject_adapter_in_model(config, trunk)


def _peft_config(lora: LoraSettings, targets: str | list[str], **facts: Any) -> LoraConfig:
    from peft import LoraConfig

    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # declared an int; peft divides it by the rank, whatever it is
        target_modules=targets,
        lora_dropout=0.0,
        bias="none",
        **facts,
    )


def adapted_layers(model: nn.Module) -> dict[str, LoraLayer]:
    """The layers that hold adapters, by their names; empty where the whole model is tuned."""
    if "peft" not in sys.modules:  # then nothing has put any in
        return {}
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """The model as it was before it had adapters, for forwards without gradients."""
    layers = adapted_layers(model).values()
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def published_name(parameter: str) -> str:
    """`model.x.q_proj.lora_A.default.weight` as it stands in PEFT's files."""
    return PREFIX + parameter.replace(f".{ADAPTER}.", ".")


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The adapters' parameters by published name."""
    return {published_name(n): p for n, p in model.named_parameters() if ".lora_A." in n or ".lora_B." in n}


def adapter_shapes(model_path: str, lora: LoraSettings) -> dict[str, tuple[int, ...]]:
    """Published names and shapes of the adapter that a learner of this model has; no weights are read."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model_path))
        attach(model, lora)
    return {name: tuple(p.shape) for name, p in adapter_parameters(model).items()}


def missing_targets(model_path: str, targets: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Each target that names no linear layer of the model, which peft would pass over, with the ends of those names
    that there are; no weights are read."""
    with torch.device("meta"):
        trunk = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model_path)).base_model
    linear = [name for name, module in trunk.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    ends = tuple(dict.fromkeys(name.rpartition(".")[2] for name in linear))
    return {t: ends for t in targets if not any(name == t or name.endswith(f".{t}") for name in linear)}


def write_adapter(directory: Path, tensors: Mapping[str, torch.Tensor], lora: LoraSettings, base: str) -> None:
    """A PEFT directory of these tensors, by published name, for the causal language model `base`."""
    targets = {name.removeprefix(PREFIX).rpartition(".lora_")[0] for name in tensors}
    facts = {"task_type": "CAUSAL_LM", "base_model_name_or_path": base, "inference_mode": True}
    _peft_config(lora, sorted(targets), **facts).save_pretrained(str(directory))
    save_file(dict(tensors), directory / "adapter_model.safetensors", metadata={"format": "pt"})


class AdapterInbox:
    """The tensors of one adapter as they come in, checked against the names and shapes that it must have."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._shapes = dict(shapes)
        self._tensors: dict[str, torch.Tensor] = {}

    def clear(self) -> None:
        self._tensors = {}

    def put(self, bucket: WeightBucket | DeviceBucket) -> None:
        """Copy a bucket's tensors. ValueError for a name or shape that is not the adapter's."""
        for name, tensor in tensors_of(bucket):
            if name not in self._shapes:
                raise ValueError(f"the adapter has no parameter {name}: publish an adapter of the same model.lora")
            if self._shapes[name] != tuple(tensor.shape):
                raise ValueError(f"{name} is {self._shapes[name]} here, {tuple(tensor.shape)} in the bucket")
            self._tensors[name] = tensor

    def take(self) -> dict[str, torch.Tensor]:
        """The whole adapter. ValueError if a part of it has not come."""
        if lacking := sorted(self._shapes.keys() - self._tensors.keys()):
            raise ValueError(f"the update lacks {len(lacking)} parameters, such as {lacking[0]}: publish them all")
        taken, self._tensors = self._tensors, {}
        return taken

    def zeros(self) -> dict[str, torch.Tensor]:
        """The adapter that changes nothing."""
        return {name: torch.zeros(shape) for name, shape in self._shapes.items()}
