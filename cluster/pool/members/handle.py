"""What the pool asks of a rollout worker, wherever it runs.

Two implementations pass the same contract tests: Ray actors (cluster/workers/rollout.py) and, for tests, workers in
this process. Calls are coroutines of the pool's event loop; those about weights take effect in the order in which they
were called. A worker that is gone raises WorkerLost from any of them; an error inside a worker raises WorkerError.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from actors.rollouts.generation import RolloutStats
from actors.rollouts.pace import Pace
from actors.rollouts.spans import RolloutSeconds, Span
from actors.transports.interface import Link
from actors.types import PolicyVersion
from cluster.experience.columns import Ref
from cluster.pool.members.ticket import Ticket


class WorkerLost(Exception):
    """The worker's process or node is gone."""


class WorkerError(Exception):
    """The worker refused or failed: its own words."""


@dataclass(frozen=True, slots=True)
class WorkerIdentity:
    """What must be equal in all workers of a pool for their samples to be alike: the engine and its version, the dtype,
    the tokenizer's files and the model's config, as hashes."""

    engine: str
    dtype: str
    tokenizer: str
    model: str


@dataclass(frozen=True, slots=True)
class WorkerPulse:
    """How a worker is doing. pressure: the share of its cache that running sequences hold. open: tickets under way.
    spans: what it did since the last pulse, from when to when. pace: of its decode steps."""

    tokens_made: int
    open: int
    pressure: float
    seconds: RolloutSeconds
    spans: tuple[Span, ...] = ()
    pace: Pace = field(default_factory=Pace)


class RolloutHandle(Protocol):
    """`start` may take minutes; the pool gives each its deadline."""

    async def start(self) -> WorkerIdentity:
        """Wait until its engine runs, under no version."""

    async def generate(self, ticket: Ticket) -> tuple[Ref, Ref, RolloutStats]:
        """(samples, the recorded ones, statistics); interrupted samples end with ABORT."""

    async def interrupt(self) -> int:
        """End what it generates where it stands; how many tickets come back so."""

    async def adopt(self, version: PolicyVersion) -> None:
        """Its weights, fresh from disk, are `version`."""

    async def sleep(self) -> None:
        """Give up the engine's memory until the next publish; nothing may be under way."""

    async def begin_publish(self, number: int) -> None: ...

    async def connect(self, link: Link) -> None:
        """Join the group that the next buckets come through."""

    async def receive(self, parcel: Ref) -> None:
        """What the transport made of a bucket, or the bucket itself."""

    async def finish_publish(self, version: PolicyVersion) -> None:
        """Returns when it has proved that it holds `version.digest`."""

    async def probe(self, batch: Ref) -> np.ndarray:
        """Its log-probs of recorded samples, float32 on the batch's T axis."""

    async def admit(self, version: PolicyVersion) -> None: ...

    async def pulse(self) -> WorkerPulse: ...

    async def stop(self) -> None:
        """End it, whatever it does."""
