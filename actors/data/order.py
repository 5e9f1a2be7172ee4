"""In which order prompts are admitted: seeded, endless, resumable from one integer.

In: the number of rows, a seed, a position. Out: (row, group) pairs, where group is the position itself: unique per
admission for the whole run, so it names the group of samples. Epoch = position // n_rows; each epoch is its own
permutation. The state of a run is its position, nothing else. Left out: what a row holds.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class PromptOrder:
    """`take(position, count)` gives the same pairs whatever was taken before, in whatever portions."""

    n_rows: int
    seed: int = 0
    shuffle: bool = True

    def __post_init__(self) -> None:
        if self.n_rows < 1:
            raise ValueError("there are no prompts to order; the prompt source is empty")

    def take(self, position: int, count: int) -> list[tuple[int, int]]:
        """(row, group) of positions position .. position + count - 1, group = position."""
        return [(self._row(p), p) for p in range(position, position + count)]

    def epoch(self, position: int) -> int:
        return position // self.n_rows

    def _row(self, position: int) -> int:
        epoch, place = divmod(position, self.n_rows)
        return int(_permutation(self.n_rows, self.seed, epoch)[place]) if self.shuffle else place


@functools.lru_cache(maxsize=4)
def _permutation(n_rows: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(n_rows)
