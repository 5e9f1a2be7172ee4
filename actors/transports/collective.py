"""One broadcast to all engines: NCCL between GPUs, gloo between CPUs.

In: buckets where the learner holds them. Out: the same bytes on every linked engine's device. The group is of this
transport alone and no default group of either process; it lasts until the pool's membership changes. torch's process
groups are used and not vLLM's NCCL engine, whose communicator waits for a dead peer without end: here a broadcast that
somebody misses ends with an error after its deadline. Left out: who is linked (cluster/pool/members/weights.py).
"""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from actors.transports.flat import checksum, flat_bytes
from actors.transports.interface import DeviceBucket, Layout, Link, Named, TransportError
from actors.types import WeightBucket


@dataclass(frozen=True, slots=True)
class Announcement:
    """What comes by broadcast next, and the checksum of its bytes."""

    layout: Layout
    checksum: int


class Group:
    """One end's membership."""

    def __init__(self, device: str, timeout_s: float) -> None:
        self.device = torch.device(device)
        self._timeout = timedelta(seconds=timeout_s)
        self._timeout_s = timeout_s
        self._group: Any = None
        self._store: dist.TCPStore | None = None

    def meet(self, size: int) -> Link:
        """Open the place where the others come to."""
        address = socket.gethostbyname(socket.gethostname())
        self._group = None
        self._store = dist.TCPStore(address, 0, size, True, timeout=self._timeout, wait_for_workers=False)
        return Link(address, self._store.port, 0, size)

    def join(self, link: Link) -> None:
        """Returns when all have come."""
        began = time.monotonic()
        try:
            store = self._meeting(link)
            # NCCL makes its communicator at the first broadcast and waits there without a deadline: not before all are.
            if store.add("come", 1) == link.size:
                store.set("complete", "yes")
            store.wait(["complete"], self._timeout)
            self._group = self._process_group(link, store)
        except Exception as error:  # torch raises several kinds here
            raise TransportError(
                f"the group of {link.size} at {link.address}:{link.port} {self._outcome(error, began)}"
            ) from error

    def _meeting(self, link: Link) -> dist.TCPStore:
        """The place where the group meets: rank 0 has opened it, the others come to it."""
        if link.rank > 0:
            self._store = dist.TCPStore(link.address, link.port, link.size, False, timeout=self._timeout)
        if self._store is None:
            raise RuntimeError("rank 0 has not opened its place: call meet first")
        return self._store

    def _outcome(self, error: Exception, began: float) -> str:
        if time.monotonic() - began < 0.95 * self._timeout_s:
            return f"failed: {first_line(error)}"
        return f"was not complete within {self._timeout_s:g} s: {first_line(error)}"

    def _process_group(self, link: Link, store: dist.TCPStore) -> Any:
        if self.device.type == "cuda":
            options = dist.ProcessGroupNCCL.Options()
            options._timeout = self._timeout
            return dist.ProcessGroupNCCL(store, link.rank, link.size, options)
        return dist.ProcessGroupGloo(store, link.rank, link.size, self._timeout)

    def broadcast(self, data: torch.Tensor) -> None:
        """From rank 0, into `data` elsewhere."""
        if self._group is None:
            raise TransportError("no group was joined: link the engines before publishing")
        options = dist.BroadcastOptions()
        options.rootRank, options.rootTensor = 0, 0
        began = time.monotonic()
        try:
            self._group.broadcast([data], options).wait(self._timeout)
            if self.device.type == "cuda":
                torch.cuda.current_stream(self.device).synchronize()
        except Exception as error:
            raise TransportError(f"a broadcast {self._outcome(error, began)}") from error


class CollectiveSender:
    """Rank 0. A group is joined at the first `pack` after `link`."""

    def __init__(self, device: str, timeout_s: float) -> None:
        self._group = Group(device, timeout_s)
        self._coming: Link | None = None
        self._data: torch.Tensor | None = None

    def link(self, size: int) -> Link | None:
        self._coming = self._group.meet(size)
        return self._coming

    def join(self) -> None:
        """Wait for those that `link` was for, unless they have come."""
        if self._coming is not None:
            link, self._coming = self._coming, None
            self._group.join(link)

    def pack(self, bucket: WeightBucket, tensors: Named) -> Announcement:
        self.join()
        self._data = flat_bytes(tensors).to(self._group.device)
        return Announcement(Layout.of(bucket), checksum(self._data))

    def deliver(self) -> None:
        if self._data is None:
            raise TransportError("nothing was packed since the last delivery: pack a bucket, then deliver it")
        self._group.broadcast(self._data)
        self._data = None

    def release(self) -> None:
        """Nothing was kept."""


class CollectiveReceiver:
    """Ranks 1 and up."""

    def __init__(self, device: str, timeout_s: float) -> None:
        self._group = Group(device, timeout_s)

    def connect(self, link: Link) -> None:
        self._group.join(link)

    def open(self, parcel: Any) -> WeightBucket | DeviceBucket:
        if isinstance(parcel, WeightBucket):
            return parcel
        layout = parcel.layout
        data = torch.empty(layout.nbytes, dtype=torch.uint8, device=self._group.device)
        self._group.broadcast(data)
        if checksum(data) != parcel.checksum:
            raise TransportError(f"bucket {layout.index} did not arrive as it was sent: publish the version again")
        return DeviceBucket(layout, data)


def first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
