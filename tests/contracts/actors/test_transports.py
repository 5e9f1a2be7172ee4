"""Every transport carries every version unchanged to every engine, to one that joins in between too, refuses what is
not as it was sent, and gives up on who does not come. The receiving ends are other processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from actors.rollouts.reception import PublishRefused
from actors.transports import receiver_for, sender_for
from actors.transports.buckets import cut, make_bucket
from actors.transports.collective import CollectiveSender, Group
from actors.transports.flat import checksum
from actors.transports.interface import Link, TransportError
from actors.transports.sparse_delta import DeltaBucket
from actors.types import PolicyVersion, WeightBucket, digest_buckets
from tests.contracts.actors.transport_ends import RemoteReceiver, Version, all_of

TRANSPORTS = [
    ("object_store", "cpu"),
    ("sparse_delta", "cpu"),
    ("collective", "cpu"),
    pytest.param("cuda_ipc", "cuda", marks=pytest.mark.gpu),
    pytest.param("sparse_delta", "cuda", marks=pytest.mark.gpu),
    # NCCL refuses two ranks on one GPU: this needs as many as there are ends.
    pytest.param("collective", "cuda", marks=pytest.mark.gpu),
]
BUCKET_BYTES = 3000
TIMEOUT_S = 20.0


@pytest.fixture(scope="module")
def processes() -> Iterator[list[RemoteReceiver]]:
    made = [RemoteReceiver() for _ in range(3)]
    yield made
    for process in made:
        process.close()


def tensors(version: int) -> dict[str, torch.Tensor]:
    """Two dtypes, an odd number of bytes, buckets of one tensor and of several. From version 2 to 3 few weights change,
    from 3 to 4 none."""
    made = torch.Generator().manual_seed(min(version, 2))
    named = {
        "embed": torch.randn(40, 50, generator=made).bfloat16(),
        "norm": torch.randn(7, generator=made),
        "proj": torch.randn(33, 11, generator=made).bfloat16(),
        "scale": torch.randn((), generator=made),
        "flags": torch.randint(0, 255, (5,), generator=made, dtype=torch.uint8),
    }
    if version >= 3:
        named["embed"][3, 7] += 1.0
        named["norm"][2] = -4.0
    return named


class Learner:
    """The sending end, with the buckets that went into the object store."""

    def __init__(self, transport: str, device: str) -> None:
        if device == "cuda" and transport == "collective" and torch.cuda.device_count() < 3:
            pytest.skip("NCCL takes a GPU for each end, and here are fewer than three")
        self.device = device
        self.sender = sender_for(transport, device, TIMEOUT_S)
        self.linked: list[RemoteReceiver] = []

    def publish(self, number: int, receivers: list[RemoteReceiver], spoil: Any = None) -> Version:
        """Give a version to all; how it was given. spoil: makes another parcel of the last one."""
        made = Version(PolicyVersion(number, ""))
        all_of(receivers, "begin", number)
        self._link(receivers)
        digests = []
        named = [(name, tensor.to(self.device)) for name, tensor in tensors(number).items()]
        for index, last, some in cut(named, BUCKET_BYTES):
            bucket = make_bucket(index, last, some)
            digests.append(bucket.digest())
            made.parcels.append(bucket)
            parcel = bucket if self.sender is None else self.sender.pack(bucket, some)
            if spoil is not None and last:
                parcel = spoil(parcel)
            for receiver in receivers:
                receiver.ask("take", parcel)
            if self.sender is not None:
                self.sender.deliver()
        made.version = PolicyVersion(number, digest_buckets(digests))
        for receiver in receivers:
            for digest in digests:
                assert receiver.answer() == digest
        return made

    def _link(self, receivers: list[RemoteReceiver]) -> None:
        if self.sender is None or receivers == self.linked:
            return
        link = self.sender.link(len(receivers) + 1)
        self.linked = receivers
        if link is None:
            return
        for rank, receiver in enumerate(receivers, start=1):
            receiver.ask("connect", replace(link, rank=rank))
        if isinstance(self.sender, CollectiveSender):
            self.sender.join()
        for receiver in receivers:
            receiver.answer()


def same(found: dict[str, tuple[str, np.ndarray]], number: int) -> None:
    for name, tensor in tensors(number).items():
        dtype, data = found[name]
        assert dtype == str(tensor.dtype)
        np.testing.assert_array_equal(data, tensor.contiguous().view(-1).view(torch.uint8).numpy())


@pytest.mark.parametrize(("transport", "device"), TRANSPORTS)
def test_every_version_reaches_every_engine_bit_by_bit(
    transport: str, device: str, processes: list[RemoteReceiver]
) -> None:
    learner, receivers = Learner(transport, device), processes[:2]
    all_of(receivers, "start", transport, device, TIMEOUT_S)
    for number in (1, 2, 3, 4):
        made = learner.publish(number, receivers)
        for found in all_of(receivers, "prove", made.version):
            same(found, number)
        if learner.sender is not None:
            learner.sender.release()


@pytest.mark.parametrize(("transport", "device"), TRANSPORTS)
def test_one_that_joins_takes_the_whole_version_and_the_next_with_the_others(
    transport: str, device: str, processes: list[RemoteReceiver]
) -> None:
    learner = Learner(transport, device)
    all_of(processes, "start", transport, device, TIMEOUT_S)
    learner.publish(1, processes[:2])
    whole = learner.publish(2, processes[:2])
    joiner = processes[2]
    joiner.call("begin", 2)
    for bucket in whole.parcels:
        joiner.call("take", bucket)
    same(joiner.call("prove", whole.version), 2)
    made = learner.publish(3, processes)
    for found in all_of(processes, "prove", made.version):
        same(found, 3)
    made = learner.publish(4, processes[1:])  # and one has left
    for found in all_of(processes[1:], "prove", made.version):
        same(found, 4)


def spoiled(parcel: Any) -> Any:
    """Another value where one was, whatever holds the values."""
    if isinstance(parcel, WeightBucket):
        data = parcel.data.copy()
        data[-1] ^= 1
        return replace(parcel, data=data)
    if isinstance(parcel, DeltaBucket):
        values = parcel.values.copy()
        values[-1] ^= 1
        return replace(parcel, values=values)
    return replace(parcel, checksum=parcel.checksum ^ 1)


@pytest.mark.parametrize(("transport", "device"), TRANSPORTS)
def test_what_is_not_as_it_was_sent_is_refused(transport: str, device: str, processes: list[RemoteReceiver]) -> None:
    learner, receiver = Learner(transport, device), processes[0]
    receiver.call("start", transport, device, TIMEOUT_S)
    learner.publish(2, [receiver])
    if transport in ("object_store", "sparse_delta"):  # the bytes come through, the version's digest is another
        with pytest.raises(AssertionError):
            learner.publish(3, [receiver], spoil=spoiled)
        with pytest.raises(PublishRefused, match="digest"):
            receiver.call("prove", PolicyVersion(3, "f" * 64))
    else:
        with pytest.raises(TransportError, match="did not arrive as it was sent"):
            learner.publish(3, [receiver], spoil=spoiled)


def test_a_change_to_something_else_is_refused() -> None:
    sender, receiver = sender_for("sparse_delta", "cpu", 1.0), receiver_for("sparse_delta", "cpu", 1.0)
    parcels = []
    for number in (2, 3, 4):
        ((index, last, some),) = cut(tensors(number).items(), 1 << 20)
        parcels.append(sender.pack(make_bucket(index, last, some), some))
    assert isinstance(parcels[0], WeightBucket) and isinstance(parcels[1], DeltaBucket)
    # Of four bytes and two; those that kept their value do not travel.
    assert 0 < len(parcels[1].positions) <= 6 and len(parcels[2].positions) == 0
    receiver.open(parcels[0])
    with pytest.raises(TransportError, match=r"is a change to .* held is .*: publish it whole"):
        receiver.open(parcels[2])


def test_where_most_has_changed_the_bucket_travels_whole() -> None:
    sender = sender_for("sparse_delta", "cpu", 1.0)
    for number in (1, 2):
        ((index, last, some),) = cut(tensors(number).items(), 1 << 20)
        assert isinstance(sender.pack(make_bucket(index, last, some), some), WeightBucket)


def test_who_does_not_come_is_not_waited_for() -> None:
    sender = CollectiveSender("cpu", 1.0)
    link = sender.link(3)
    assert link == Link(link.address, link.port, 0, 3)
    with pytest.raises(TransportError, match=r"the group of 3 at .* was not complete within 1 s"):
        sender.join()
    with pytest.raises(TransportError, match="was not complete within 1 s"):
        receiver_for("collective", "cpu", 1.0).connect(Link(link.address, link.port, 1, 3))


def test_a_sender_out_of_turn_says_what_comes_first() -> None:
    sender = CollectiveSender("cpu", 1.0)
    with pytest.raises(TransportError, match="nothing was packed since the last delivery"):
        sender.deliver()
    with pytest.raises(TransportError, match=r"the group of 2 at here:0 failed: rank 0 .* call meet first"):
        Group("cpu", 1.0).join(Link("here", 0, 0, 2))


def test_a_receiver_that_misses_a_broadcast_ends_it_for_the_sender(processes: list[RemoteReceiver]) -> None:
    sender, receiver = CollectiveSender("cpu", 2.0), processes[0]
    receiver.call("start", "collective", "cpu", 2.0)
    receiver.call("begin", 1)
    receiver.ask("connect", replace(sender.link(2), rank=1))
    sender.join()
    receiver.answer()
    big = [("w", torch.zeros(1 << 22))]
    sender.pack(make_bucket(0, True, big), big)
    with pytest.raises(TransportError, match="a broadcast was not complete within 2 s"):
        sender.deliver()  # the parcel was never handed out


@pytest.mark.parametrize("place", [0, 1, 8, 63, 64, 66])
def test_the_checksum_sees_every_byte(place: int) -> None:
    data = torch.arange(67, dtype=torch.uint8)
    changed = data.clone()
    changed[place] ^= 128
    assert checksum(data) != checksum(changed) and 0 <= checksum(data) < 1 << 64
    swapped = data.clone()
    swapped[0:8], swapped[8:16] = data[8:16], data[0:8]
    assert checksum(data) != checksum(swapped)
