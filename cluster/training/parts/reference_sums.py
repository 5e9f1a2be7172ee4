"""The reference's log-probs of stored rows, computed once and kept in the run directory.

In: rows, and what measures them (the policy before its first step is the reference, so no second model is loaded; a
resume computes what is lacking before it restores). Out: float64 [rows, K] sums; K is 2 for pairs, 1 for judged
responses, and one more for KTO's mismatched responses. Left out: what the numbers are for (learners).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from actors.models.identity import model_hashes
from cluster.run.directory import atomic_path

Measure = Callable[[Sequence[int]], np.ndarray]
"""float64 [n, K] of n rows."""
SAVE_EVERY_S = 30.0
CHUNK = 64
"""Rows measured at once."""


def weights_identity(model: Path) -> str:
    """Of what a model directory holds: a reference measured under other weights is not this one's."""
    return hashlib.sha256(json.dumps(model_hashes(model)).encode()).hexdigest()


class ReferenceSums:
    """A file of sums, NaN where a row was not measured yet. `identity` says what they are of; a file of another
    identity is not read."""

    def __init__(self, path: Path, identity: str, rows: int, width: int) -> None:
        self._path, self._identity = path, identity
        self.values = np.full((rows, width), np.nan)
        if path.is_file():
            with np.load(path, allow_pickle=False) as saved:
                if str(saved["identity"]) == identity:
                    self.values = saved["values"]

    def lacking(self, rows: Sequence[int]) -> list[int]:
        """Those of `rows` that are not measured yet, each once, in order."""
        return sorted({row for row in rows if np.isnan(self.values[row]).any()})

    def fill(self, rows: Sequence[int], measure: Measure, progress: Callable[[int, int], None]) -> None:
        """Measure what is lacking of `rows` and save it; a kill loses at most the last half minute."""
        lacking = self.lacking(rows)
        saved = time.monotonic()
        for begin in range(0, len(lacking), CHUNK):
            progress(begin, len(lacking))
            part = lacking[begin : begin + CHUNK]
            self.values[part] = measure(part)
            if time.monotonic() - saved > SAVE_EVERY_S:
                self._save()
                saved = time.monotonic()
        if lacking:
            self._save()

    def _save(self) -> None:
        with atomic_path(self._path) as staged, staged.open("wb") as file:
            np.savez(file, values=self.values, identity=np.array(self._identity))
