"""What a low-rank adapter is (LoRA, Hu et al. 2021), as data: the learner trains one, the engines add it to the base.

In: nothing. Out: LoraSettings, and the rank that vLLM reserves for it. The adapted weight is W + (alpha / rank) B A,
A [rank, in], B [out, rank]; B starts at zero, so a new adapter changes nothing. Left out: torch and peft (adapters.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ENGINE_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM can reserve room for."""


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """targets: names of the modules to adapt, as they end; None: every linear layer but the output head. seed: of A's
    start, equal on all ranks. export: whole weights with the adapter merged in, or a PEFT directory."""

    rank: int
    alpha: float
    targets: tuple[str, ...] | None = None
    seed: int = 0
    export: Literal["merged", "adapter"] = "merged"

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    @property
    def engine_rank(self) -> int:
        """The least rank that vLLM can reserve for this adapter."""
        return next(rank for rank in ENGINE_RANKS if rank >= self.rank)
