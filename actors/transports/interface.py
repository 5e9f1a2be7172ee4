"""The two ends of a transport, and what passes between them.

In: at the learner's end each bucket of a version in order; at an engine's end the parcels made of them, in that order.
Out: the same buckets. Who waits for whom: nobody in `pack`; `deliver` waits for every receiver that is linked, and
`open` for the sender, each with a deadline. Example: the sender packs bucket 0 and its parcel is handed to two
receivers; the sender delivers while both open it. Left out: versions and their digests (actors/rollouts/reception.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from actors.types import WeightBucket

if TYPE_CHECKING:
    import torch

Named: TypeAlias = "Sequence[tuple[str, torch.Tensor]]"


class TransportError(RuntimeError):
    """A parcel did not arrive, or not as it was sent; publish the whole version again."""


@dataclass(frozen=True, slots=True)
class Link:
    """Where a sender (rank 0) and `size - 1` receivers meet. rank: the taker's own."""

    address: str
    port: int
    rank: int
    size: int


@dataclass(frozen=True, slots=True)
class Layout:
    """A bucket without its bytes. digest: the bucket's; nbytes: of its data."""

    index: int
    last: bool
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    nbytes: int
    digest: str

    @classmethod
    def of(cls, bucket: WeightBucket) -> Layout:
        return cls(
            bucket.index,
            bucket.last,
            bucket.names,
            bucket.shapes,
            bucket.dtypes,
            bucket.data.nbytes,
            bucket.digest(),
        )


@dataclass(frozen=True, slots=True)
class DeviceBucket:
    """A WeightBucket whose data (uint8 [n]) lies on the engine's device. Its bytes were compared with the sender's by a
    checksum made there; the digest is the one that came with that checksum."""

    layout: Layout
    data: torch.Tensor

    @property
    def index(self) -> int:
        return self.layout.index

    @property
    def last(self) -> bool:
        return self.layout.last

    @property
    def names(self) -> tuple[str, ...]:
        return self.layout.names

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        return self.layout.shapes

    @property
    def dtypes(self) -> tuple[str, ...]:
        return self.layout.dtypes

    def digest(self) -> str:
        return self.layout.digest


class Sender(Protocol):
    """The learner's end; only its rank 0 has one."""

    def link(self, size: int) -> Link | None:
        """Where a new group of so many members, this end among them, meets; None where receivers need not be known.
        Returns at once; the members meet at the next `pack` and `connect`."""

    def pack(self, bucket: WeightBucket, tensors: Named) -> Any:
        """What every receiver is given of this bucket; `tensors` are the bucket's, where the learner holds them."""

    def deliver(self) -> None:
        """Bring to the receivers what the last parcel does not hold itself. TransportError past the deadline."""

    def release(self) -> None:
        """Every receiver has the version: let go of what was kept for them."""


class Receiver(Protocol):
    """An engine's end."""

    def connect(self, link: Link) -> None:
        """Join a group. TransportError past the deadline."""

    def open(self, parcel: Any) -> WeightBucket | DeviceBucket:
        """The bucket of a parcel; a whole bucket from the object store comes back as it is. TransportError when it did
        not arrive, or not as it was sent."""


class Passing:
    """Receiver of whole buckets (object_store)."""

    def connect(self, link: Link) -> None:
        raise TransportError("buckets from the object store need no group")

    def open(self, parcel: Any) -> WeightBucket:
        return parcel
