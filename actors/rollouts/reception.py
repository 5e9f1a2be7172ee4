"""The identity proof of a publish: are the buckets that arrived those of the version they are said to be?

In: buckets in any order, then the PolicyVersion. Out: silence, or PublishRefused saying which bucket or digest is
wrong. Left out: loading (the engine's), and whether loaded weights took effect (the probe's).
"""

from __future__ import annotations

from actors.transports.buckets import bucket_bytes
from actors.transports.interface import DeviceBucket
from actors.types import PolicyVersion, WeightBucket, digest_buckets


class PublishRefused(RuntimeError):
    """The weights received are not the version they claim to be; publish the whole version again."""


class Reception:
    """The buckets of one version as they come in."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._digests: dict[int, str] = {}
        self._last_index: int | None = None

    def check(self, bucket: WeightBucket | DeviceBucket) -> None:
        """Before loading: refuse a bucket that came before or whose bytes do not fit its shapes; remember the rest."""
        if bucket.index in self._digests:
            raise PublishRefused(f"bucket {bucket.index} of version {self.number} came twice")
        if bucket_bytes(bucket) != bucket.data.nbytes:
            raise PublishRefused(
                f"bucket {bucket.index} of version {self.number} has {bucket.data.nbytes} bytes, its shapes say "
                f"{bucket_bytes(bucket)}"
            )
        self._digests[bucket.index] = bucket.digest()
        if bucket.last:
            self._last_index = bucket.index

    def prove(self, version: PolicyVersion) -> None:
        """Every index from 0 to the last came, no other, and together they have the version's digest."""
        if version.number != self.number:
            raise PublishRefused(f"the buckets are of version {self.number}, not of version {version.number}")
        if self._last_index is None:
            raise PublishRefused(f"the last bucket of version {self.number} never came, only {sorted(self._digests)}")
        expected = range(self._last_index + 1)
        if sorted(self._digests) != list(expected):
            raise PublishRefused(
                f"version {self.number} has buckets 0 to {self._last_index}, received were {sorted(self._digests)}"
            )
        digest = digest_buckets([self._digests[index] for index in expected])
        if digest != version.digest:
            raise PublishRefused(
                f"version {self.number} has digest {version.digest[:12]}, the buckets received have {digest[:12]}"
            )
