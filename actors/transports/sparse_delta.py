"""Only what changed: for slow links between learner and engines.

In: buckets. Out: for each the words that differ from the same bucket of the version before, or the whole bucket where
that is less. One step of reinforcement learning changes few bfloat16 weights: an update below half a unit in the last
place is none (about 1 in 10 changes at a learning rate of 1e-6). Both ends keep a copy of the weights in host memory.
Left out: finer coding of positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from actors.transports.interface import Layout, Link, Named, TransportError
from actors.types import WeightBucket

WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
SIZES = {"bfloat16": 2, "float16": 2, "float32": 4, "float64": 8, "int64": 8, "int32": 4, "int16": 2}


@dataclass(frozen=True, slots=True)
class DeltaBucket:
    """positions uint32 [n] of words of `word` bytes, and their new values [n]; base: the digest of what they change."""

    layout: Layout
    base: str
    word: int
    positions: np.ndarray
    values: np.ndarray

    @property
    def nbytes(self) -> int:
        return self.positions.nbytes + self.values.nbytes


class DeltaSender:
    """Remembers the last version that it sent."""

    def __init__(self) -> None:
        self._sent: dict[int, tuple[str, np.ndarray]] = {}

    def link(self, size: int) -> Link | None:
        return None

    def pack(self, bucket: WeightBucket, tensors: Named) -> WeightBucket | DeltaBucket:
        layout, before = Layout.of(bucket), self._sent.get(bucket.index)
        self._sent[bucket.index] = (layout.digest, bucket.data)
        if before is None or before[1].nbytes != bucket.data.nbytes:
            return bucket
        word = min((SIZES.get(name, 1) for name in bucket.dtypes), default=1)
        new, old = bucket.data.view(WORDS[word]), before[1].view(WORDS[word])
        positions = np.flatnonzero(new != old)
        if len(positions) * (4 + word) >= bucket.data.nbytes or len(new) > 1 << 32:
            return bucket
        return DeltaBucket(layout, before[0], word, positions.astype(np.uint32), new[positions])

    def deliver(self) -> None:
        """The parcels hold everything."""

    def release(self) -> None:
        """What was sent is the base of the next version."""


class DeltaReceiver:
    """Remembers the weights that it has, to apply the next change to."""

    def __init__(self) -> None:
        self._held: dict[int, tuple[str, np.ndarray]] = {}

    def connect(self, link: Link) -> None:
        raise TransportError("changes are pulled from the object store and need no group")

    def open(self, parcel: Any) -> WeightBucket:
        if isinstance(parcel, WeightBucket):
            self._held[parcel.index] = (parcel.digest(), parcel.data.copy())  # the store's own memory goes away
            return parcel
        layout = parcel.layout
        digest, data = self._held.pop(layout.index, ("nothing", np.zeros(0, np.uint8)))
        if digest != parcel.base:
            raise TransportError(
                f"bucket {layout.index} is a change to {parcel.base[:12]}, held is {digest[:12]}: publish it whole"
            )
        data.view(WORDS[parcel.word])[parcel.positions] = parcel.values
        bucket = WeightBucket(layout.index, layout.last, layout.names, layout.shapes, layout.dtypes, data)
        self._held[layout.index] = (layout.digest, data)
        return bucket
