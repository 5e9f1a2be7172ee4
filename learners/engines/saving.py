"""Tensor files of a checkpoint, written beside training: the tensors are copied, a thread does the rest.

In: named tensors, what is said of them, and a path. Out: a safetensors file, synced, with its size and hash. The
copies are kept and used again by the next checkpoint: fresh pages cost more than the copying. Left out: what is saved
(training_state.py), the manifest (the driver's).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors.torch import save_file

Write = Callable[[Mapping[str, torch.Tensor], Path, Mapping[str, str]], None]
"""Puts tensors and what is said of them (the file's metadata) into a file, now or later; the tensors may change as soon
as it returns."""
FileFacts = dict[str, int | str]
"""{"bytes": size, "sha256": hash} of a file."""


def write_now(tensors: Mapping[str, torch.Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    save_file({name: _own(tensor) for name, tensor in tensors.items()}, path, dict(metadata))


class LaterWriter:
    """Writes one file after another. `begin` before each checkpoint."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._copies: dict[str, dict[str, torch.Tensor]] = {}
        self._writing: dict[Path, Future[FileFacts]] = {}

    def begin(self) -> None:
        """Wait for what is still being written: its copies are about to be used again."""
        for future in self._writing.values():
            future.exception()
        self._writing = {}

    def __call__(self, tensors: Mapping[str, torch.Tensor], path: Path, metadata: Mapping[str, str]) -> None:
        copies = self._copies.setdefault("/".join(path.parts[-2:]), {})  # the same file of every checkpoint
        for gone in copies.keys() - tensors.keys():
            del copies[gone]
        for name, tensor in tensors.items():
            held = copies.get(name)
            if held is None or held.shape != tensor.shape or held.dtype != tensor.dtype:
                copies[name] = tensor.detach().to("cpu", copy=True).contiguous()
            else:
                held.copy_(tensor.detach())
        self._writing[path] = self._thread.submit(_write, copies, path, dict(metadata))

    def written(self) -> dict[Path, FileFacts] | None:
        """Every file since `begin`; None while one is being written. OSError, of the first that could not be."""
        if not all(future.done() for future in self._writing.values()):
            return None
        return {path: future.result() for path, future in self._writing.items()}


def _write(tensors: Mapping[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> FileFacts:
    try:
        save_file(dict(tensors), path, metadata)
    except Exception as error:  # safetensors wraps the system's errors in its own
        raise OSError(f"{path.name} could not be written: {error}") from error
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _own(tensor: torch.Tensor) -> torch.Tensor:
    """A CPU tensor that shares its storage with no other: safetensors refuses views of one buffer."""
    tensor = tensor.detach().contiguous()
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor.cpu() if whole or tensor.device.type != "cpu" else tensor.clone()
