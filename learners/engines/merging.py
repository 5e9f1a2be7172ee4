"""Adapters merged into the weights they adapt, as the stream of a model's parameters goes by.

In: named parameters in the module's order, ZeRO's shards already gathered, and how each adapted layer is scaled. Out:
the same stream under the base's own names, W + scale B A in place of W, A and B. Left out: gathering (the engines),
files (learners/export.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch

from actors.models.adapters import ADAPTER, adapted_layers

Part = list[tuple[str, torch.Tensor]]
BASE, DOWN, UP = ".base_layer.", f".lora_A.{ADAPTER}.weight", f".lora_B.{ADAPTER}.weight"


@dataclass(frozen=True, slots=True)
class Scaling:
    """Of one adapted layer. transposed: the layer holds its weight as [in, out]."""

    scale: float
    transposed: bool

    def merge(self, weight: torch.Tensor, down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """W + scale B A, summed in float32, in W's dtype."""
        delta = self.scale * up.float() @ down.float()
        return (weight.float() + (delta.T if self.transposed else delta)).to(weight.dtype)


def scalings(module: torch.nn.Module) -> dict[str, Scaling]:
    """By the layer's name; empty where the whole model is tuned."""
    return {
        name: Scaling(layer.scaling[ADAPTER], bool(getattr(layer, "fan_in_fan_out", False)))
        for name, layer in adapted_layers(module).items()
    }


def merged(parts: Iterable[Part], adapted: Mapping[str, Scaling]) -> Iterator[Part]:
    """The parts without adapters. A layer's pieces follow one another, so at most one layer is held back."""
    held: dict[str, torch.Tensor] = {}
    for part in parts:
        yield [item for name, tensor in part for item in _merge(name, tensor, adapted, held)] if adapted else part


def _merge(
    name: str, tensor: torch.Tensor, adapted: Mapping[str, Scaling], held: dict[str, torch.Tensor]
) -> Iterator[tuple[str, torch.Tensor]]:
    if name.endswith((f"{BASE}weight", DOWN)):
        held[name] = tensor
    elif name.endswith(UP):
        layer = name.removesuffix(UP)
        weight, down = held.pop(f"{layer}{BASE}weight"), held.pop(f"{layer}{DOWN}")
        yield f"{layer}.weight", adapted[layer].merge(weight, down, tensor)
    else:
        yield name.replace(BASE, "."), tensor
