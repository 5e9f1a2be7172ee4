"""A receiving end of a transport in a process of its own, as an engine has it, told what to do through a pipe.

In: a transport's name and a device. Out: what it received, as digests and arrays. Left out: engines.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from actors.types import PolicyVersion

SOON_S = 60.0


@dataclass
class Version:
    """What a receiver is asked to take: parcels in order, and what they are said to be."""

    version: PolicyVersion
    parcels: list[Any] = field(default_factory=list)


class RemoteReceiver:
    """One process; every call is asked for and answered later, so that several can be under way."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, call: str, *arguments: Any) -> None:
        self._pipe.send((call, arguments))

    def answer(self, timeout_s: float = SOON_S) -> Any:
        """Of the oldest call that was asked for; its error is raised here."""
        assert self._pipe.poll(timeout_s), "the receiver does not answer"
        found = self._pipe.recv()
        if isinstance(found, Exception):
            raise found
        return found

    def call(self, call: str, *arguments: Any) -> Any:
        self.ask(call, *arguments)
        return self.answer()

    def close(self) -> None:
        self._process.kill()
        self._process.join()


class _Serving:
    """What the process does."""

    def start(self, transport: str, device: str, timeout_s: float) -> None:
        from actors.transports import receiver_for

        self.receiver = receiver_for(transport, device, timeout_s)

    def connect(self, link: Any) -> None:
        self.receiver.connect(link)

    def begin(self, number: int) -> None:
        from actors.rollouts.reception import Reception

        self.reception, self.tensors = Reception(number), {}

    def take(self, parcel: Any) -> str:
        """The bucket's digest, as this end computes it."""
        from actors.transports.buckets import tensors_of

        bucket = self.receiver.open(parcel)
        self.reception.check(bucket)
        self.tensors |= dict(tensors_of(bucket))
        return bucket.digest()

    def prove(self, version: PolicyVersion) -> dict[str, tuple[str, np.ndarray]]:
        """Every tensor's dtype and bytes, once the version is proved."""
        import torch

        self.reception.prove(version)
        return {
            name: (str(t.dtype), t.cpu().contiguous().view(-1).view(torch.uint8).numpy())
            for name, t in self.tensors.items()
        }


def _serve(pipe: Any) -> None:
    serving = _Serving()
    while True:
        try:
            call, arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(getattr(serving, call)(*arguments))
        except Exception as error:  # fault boundary: the test hears of it
            pipe.send(type(error)(str(error)))


def all_of(receivers: Sequence[RemoteReceiver], call: str, *arguments: Any) -> list[Any]:
    """The same call on each at once."""
    for receiver in receivers:
        receiver.ask(call, *arguments)
    return [receiver.answer() for receiver in receivers]
