"""Workers whose engines run and that hold no version: ready to take the place of one that is lost, or to join.

In: how a member is made and its engine started. Out: members, one at a time; another is started for each that was
taken. Who waits for whom: nobody; who finds none ready starts a worker. Left out: joining (roster.py).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from cluster.errors import RunFailed
from cluster.pool.members.member import Member, MemberState
from cluster.pool.members.recovery import FailureBudget, RecoveryLimits
from cluster.pool.members.watch import WATCH_EVERY_S
from cluster.pool.members.weights import within


class Spares:
    """new: makes a member and asks for its worker. start: the moment at which its engine runs. tell: (kind, text) for
    people. spawn: keeps a task."""

    def __init__(
        self,
        new: Callable[[MemberState], Member],
        start: Callable[[Member], Coroutine[Any, Any, float]],
        *,
        limits: RecoveryLimits,
        budget: FailureBudget,
        tell: Callable[[str, str], None],
        spawn: Callable[[Coroutine[Any, Any, Any]], asyncio.Task[Any]],
    ) -> None:
        self._new = new
        self._start = start
        self._limits = limits
        self._budget = budget
        self._tell = tell
        self._spawn = spawn
        self._ready: list[Member] = []
        self._lacking = limits.spares

    @property
    def ready(self) -> int:
        """Spares whose engines run."""
        return len(self._ready)

    def keep(self) -> None:
        """From now on as many as the limits say are kept ready."""
        for _ in range(self._lacking):
            self._spawn(self._warm(0.0))

    def inherit(self, members: Sequence[Member]) -> None:
        """Workers of an earlier driver, which are spares from now on."""
        for member in members:
            member.move(MemberState.SPARE)
            self._spawn(self._warm(0.0, member))
        self._lacking -= len(members)

    def take(self) -> Member | None:
        """One that is ready, to join now; another is started in its place."""
        if not self._ready:
            return None
        member = self._ready.pop(0)
        member.move(MemberState.JOINING)
        member.asked_at, member.inherited = time.monotonic(), False
        self._spawn(self._warm(self._limits.backoff_s))
        return member

    async def _warm(self, wait_s: float, member: Member | None = None) -> None:
        """Start a spare, or take this one, and start another if it cannot or does not stay."""
        await asyncio.sleep(wait_s)
        member = member or self._new(MemberState.SPARE)
        try:
            engine_at = await self._start(member)
            self._ready.append(member)
            self._tell("worker", f"{member.name} is a spare (engine {engine_at - member.asked_at:.1f} s)")
            while member in self._ready:
                await asyncio.sleep(WATCH_EVERY_S)
                await within(member.handle.pulse(), self._limits.silence_s, f"asking {member.name}")
        except RunFailed as error:  # fault boundary: nobody waits for it
            if member.state is not MemberState.SPARE:
                return  # it has joined meanwhile, and is watched as a member
            if member in self._ready:
                self._ready.remove(member)
            member.move(MemberState.DEAD)
            self._tell("lost", f"the spare {member.name} is lost: {error}")
            await member.handle.stop()
            if (again_s := self._budget.failed(time.monotonic())) is not None:
                await self._warm(again_s)
            else:
                self._tell("worker", "no more spares are started (recovery.worker_failures)")
