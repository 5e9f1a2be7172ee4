"""What a vLLM engine needs to serve an adapter, as far as it does not need vLLM.

In: EngineSettings with `lora`. Out: arguments of the engine, the product that replaces vLLM's CPU kernels, a PEFT
directory for `add_lora`. Left out: importing vLLM (engine.py), checking what comes in (adapters.AdapterInbox).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from actors.engines.interface import EngineSettings
from actors.models.adapters import AdapterInbox, adapter_shapes, write_adapter
from actors.models.lora import LoraSettings


def adapter_args(settings: EngineSettings) -> dict[str, Any]:
    """Arguments that give the engine room for one adapter, in the layers that it has; none without `lora`."""
    if settings.lora is None:
        return {}
    layers = {name.split(".")[-3] for name in adapter_shapes(settings.model_path, settings.lora)}
    return {
        "enable_lora": True,
        "max_loras": 1,
        "max_lora_rank": settings.lora.engine_rank,
        "lora_target_modules": sorted(layers),
    }


def add_by_matmul(
    y: torch.Tensor,
    x: torch.Tensor,
    a_stacked: Sequence[torch.Tensor],
    b_stacked: Sequence[torch.Tensor],
    scale: float,
    output_slices: Sequence[int],
    **_kwargs: Any,
) -> None:
    """vLLM's `add_lora_linear` where every row has the one adapter: y [n, out] += scale x A^T B^T, slice by slice. Its
    CPU kernels copy the adapter's weights once for every token."""
    begin = 0
    for a, b, width in zip(a_stacked, b_stacked, output_slices, strict=True):
        y[:, begin : begin + width] += scale * (x @ a[0, 0].T) @ b[0, 0].T
        begin += width


class AdapterSlot:
    """The one adapter of an engine. load: takes a PEFT directory and makes its adapter the one that all requests run
    on. A request that runs on over the first publish needs one from its start, so the first changes nothing."""

    def __init__(self, model_path: str, lora: LoraSettings, load: Callable[[str], None]) -> None:
        self._model_path, self._lora, self._load = model_path, lora, load
        self.inbox = AdapterInbox(adapter_shapes(model_path, lora))
        self._set(self.inbox.zeros())

    def finish(self) -> None:
        """Make what came the engine's adapter. ValueError if a part is lacking."""
        self._set(self.inbox.take())

    def _set(self, tensors: Mapping[str, torch.Tensor]) -> None:
        with tempfile.TemporaryDirectory(prefix="raylign-adapter-") as folder:
            write_adapter(Path(folder), tensors, self._lora, self._model_path)
            self._load(folder)
