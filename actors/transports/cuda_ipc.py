"""Handles instead of bytes, where learner and engine share one GPU.

In: buckets in the learner's GPU memory. Out: the same memory, mapped into the engine's process: nothing is copied until
the engine loads it. The learner keeps the buckets until the version is admitted. Left out: making both fit on the GPU
(sleeping engines).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from actors.transports.flat import checksum, flat_bytes
from actors.transports.interface import DeviceBucket, Layout, Link, Named, TransportError
from actors.types import WeightBucket


@dataclass(frozen=True, slots=True)
class Handle:
    """rebuild(*arguments) is the bucket's data in another process that sees the GPU `uuid`."""

    layout: Layout
    checksum: int
    uuid: str
    rebuild: Callable[..., torch.Tensor]
    arguments: tuple[Any, ...]


class IpcSender:
    def __init__(self) -> None:
        self._kept: list[torch.Tensor] = []

    def link(self, size: int) -> Link | None:
        return None

    def pack(self, bucket: WeightBucket, tensors: Named) -> Handle:
        from torch.multiprocessing.reductions import reduce_tensor

        data = flat_bytes(tensors).cuda()
        found = checksum(data)  # reading it back waits for the copies into `data` as well
        self._kept.append(data)
        rebuild, arguments = reduce_tensor(data)
        return Handle(Layout.of(bucket), found, gpu_uuid(data.device), rebuild, arguments)

    def deliver(self) -> None:
        """The memory is there already."""

    def release(self) -> None:
        self._kept.clear()


class IpcReceiver:
    def connect(self, link: Link) -> None:
        raise TransportError("memory of the same GPU needs no group")

    def open(self, parcel: Any) -> WeightBucket | DeviceBucket:
        if isinstance(parcel, WeightBucket):
            return parcel
        if (mine := gpu_uuid(torch.device("cuda"))) != parcel.uuid:
            raise TransportError(f"the learner's GPU is {parcel.uuid}, the engine's {mine}: use another transport")
        data = parcel.rebuild(*parcel.arguments)
        if checksum(data) != parcel.checksum:
            raise TransportError(f"bucket {parcel.layout.index} did not arrive as it was sent: publish it again")
        return DeviceBucket(parcel.layout, data)


def gpu_uuid(device: torch.device) -> str:
    return str(torch.cuda.get_device_properties(device).uuid)
