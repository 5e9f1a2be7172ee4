"""Tensors as bytes end to end, and their checksum, where they lie.

In: tensors of one bucket. Out: uint8 tensors, numbers. Apart from the interface, which the driver imports, because it
needs torch. Left out: transports.
"""

from __future__ import annotations

import torch

from actors.transports.interface import Named


def flat_bytes(tensors: Named) -> torch.Tensor:
    """uint8 [n]: the tensors end to end, where they lie."""
    parts = [tensor.detach().contiguous().view(-1).view(torch.uint8) for _, tensor in tensors]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.uint8)


def checksum(data: torch.Tensor) -> int:
    """64 bits of uint8 [n], equal on every device: sum of word_i (2 i + 1) modulo 2^64, so that any one changed word,
    and almost any two, change it. Not against malice."""
    whole = data.numel() // 8 * 8
    words = data[:whole].view(torch.int64) if whole else torch.zeros(0, dtype=torch.int64, device=data.device)
    odd = torch.arange(1, 2 * words.numel() + 1, 2, dtype=torch.int64, device=data.device)
    tail = sum(int(byte) << (8 * i) for i, byte in enumerate(data[whole:].tolist()))
    total = int((words * odd).sum()) + tail * (2 * words.numel() + 1)
    return total % (1 << 64)
