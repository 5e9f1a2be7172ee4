"""Who is in the pool: workers that start, prove the weights, serve, leave, or are lost and replaced.

In: a number of workers wanted, failures. Out: members that serve, events. Who waits for whom: a joiner waits for a
publish under way (weights.py); a leaver gives back its tickets first; the replacement of a lost
worker waits for the backoff of the budget (recovery.py). A lost worker is one that is gone, or answers nothing, or
holds work and makes no token, or computes with other weights than the others: it is ended, whatever it does. Left out:
tickets (cluster/pool/core.py), who is lost or rests because of how it works (watch.py).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from cluster.errors import RunFailed
from cluster.pool.members.handle import RolloutHandle, WorkerIdentity
from cluster.pool.members.member import Member, MemberState
from cluster.pool.members.recovery import FailureBudget, RecoveryLimits
from cluster.pool.members.spares import Spares
from cluster.pool.members.watch import Listener, Watch
from cluster.pool.members.weights import Weights, within

STAY = (MemberState.HEALTHY, MemberState.JOINING, MemberState.SUSPECT)
"""In the order in which they are kept when the pool gets smaller."""


@dataclass(frozen=True, slots=True)
class Deadlines:
    start_s: float
    generate_s: float
    weights_s: float


class Members:
    """start: makes the handle of a new worker by name. spawn: keeps a task."""

    def __init__(
        self,
        start: Callable[[str], RolloutHandle],
        *,
        deadlines: Deadlines,
        limits: RecoveryLimits,
        listener: Listener,
        spawn: Callable[[Coroutine[Any, Any, Any]], asyncio.Task[Any]],
    ) -> None:
        self._start = start
        self._deadlines = deadlines
        self._limits = limits
        self._budget = FailureBudget(limits.failures, limits.backoff_s)
        self._on = listener
        self._spawn = spawn
        self.by_name: dict[str, Member] = {}
        self._made = 0
        self._coming: list[asyncio.Task[Any]] = []
        """Replacements that wait for their time."""
        self.spares = Spares(
            self._new_member,
            self._start_engine,
            limits=limits,
            budget=self._budget,
            tell=listener.tell,
            spawn=spawn,
        )
        self._identity: WorkerIdentity | None = None
        self.weights = Weights(lambda: self.healthy, self.lose, spawn, deadlines.weights_s)
        self._watch = Watch(limits, self.weights, listener, members=self.by_name, lose=self.lose, spawn=spawn)

    @property
    def healthy(self) -> list[Member]:
        """In the order in which they were started."""
        return [m for m in self.by_name.values() if m.state is MemberState.HEALTHY]

    @property
    def staying(self) -> list[Member]:
        """Those that serve or will."""
        return [m for m in self.by_name.values() if m.state in STAY and not m.leaving]

    @property
    def with_work(self) -> list[Member]:
        """Those that may have some: a suspect too, until it has handed its own on."""
        return [m for m in self.by_name.values() if m.state in (MemberState.HEALTHY, MemberState.SUSPECT)]

    @property
    def sharing(self) -> int:
        """How many prompts are divided among: as `count`, but for those that rest."""
        return self.count - sum(m.state is MemberState.SUSPECT for m in self.staying)

    @property
    def count(self) -> int:
        """Of those that stay and of replacements on their way."""
        return len(self.staying) + len(self._coming)

    # --- coming ---

    def add(self, count: int) -> list[asyncio.Task[None]]:
        """Start so many workers, spares first; a task each that ends when it is healthy."""
        return [self._spawn(self._join(self.spares.take() or self._new_member())) for _ in range(count)]

    def inherit(self, found: Mapping[str, RolloutHandle], count: int) -> list[asyncio.Task[None]]:
        """Take over workers that an earlier driver left: `count` or more, but for as many as are kept as spares, serve
        from the next publish on, which goes to them too; a task each. Others are started for those that lack."""
        self._made = max(int(name.rpartition("-")[2]) for name in found) + 1
        now = time.monotonic()
        members = [Member(name, handle, asked_at=now, inherited=True) for name, handle in found.items()]
        self.by_name |= {member.name: member for member in members}
        serving = max(count, len(members) - self._limits.spares)
        self.spares.inherit(members[serving:])
        if serving > len(members):
            self.add(serving - len(members))
        return [self._spawn(self._take_over(member)) for member in members[:serving]]

    async def _take_over(self, member: Member) -> None:
        try:
            await self._join(member, again=True)
        except RunFailed as error:  # fault boundary: it was told, and counts as one that was lost
            self._replace(str(error))

    def _new_member(self, state: MemberState = MemberState.JOINING) -> Member:
        name = f"rollout-{self._made}"
        self._made += 1
        member = self.by_name[name] = Member(name, self._start(name), state, asked_at=time.monotonic())
        return member

    async def _join(self, member: Member, again: bool = False) -> None:
        """again: the caller has another in its place when it fails."""
        try:
            engine_at = await self._prepare(member)
        except BaseException as error:
            if member.gone or member.state is MemberState.DRAINING:
                return  # it was asked to leave before it had joined
            member.move(MemberState.DEAD)
            self._on.tell("worker", f"{member.name} could not join: {_words(error)}")
            await member.handle.stop()
            if not again:
                self._fewer(str(error))
            raise
        if member.state is MemberState.JOINING:
            member.move(MemberState.HEALTHY)
            self._budget.succeeded()
            engine_s = max(0.0, engine_at - member.asked_at)  # a spare's engine ran already
            proof_s = time.monotonic() - max(engine_at, member.asked_at)
            took = f"engine {engine_s:.1f} s, weights and proof {proof_s:.2f} s"
            joined = f"joined at version {member.version} ({took})"
            self._on.tell("worker", f"{member.name} " + ("goes on" if member.inherited else joined))
            self._on.joined(member)
            self._spawn(self._watch.over(member))

    async def _prepare(self, member: Member) -> float:
        """From its start to the current weights, proved. The moment at which its engine ran."""
        engine_at = await self._start_engine(member) if member.engine_at is None else member.engine_at
        if not member.inherited:
            await self.weights.bring_up_to_date(member)
        return engine_at

    async def _start_engine(self, member: Member) -> float:
        """The moment at which it runs."""
        deadline_s = self._limits.silence_s if member.inherited else self._deadlines.start_s
        identity = await within(member.handle.start(), deadline_s, f"starting {member.name}")
        if self._identity is None:
            self._identity = identity
        elif other := _differences(self._identity, identity):
            raise RunFailed(f"{member.name} has another {other}; mend its node's installation")
        member.engine_at = engine_at = time.monotonic()
        return engine_at

    # --- going ---

    def remove(self, count: int) -> list[asyncio.Task[None]]:
        """Let the newest go; those that rest and those that have not joined yet first. A task each that ends when it is
        gone."""
        unborn = self._coming[len(self._coming) - count :] if count < len(self._coming) else list(self._coming)
        for task in unborn:
            self._coming.remove(task)
            task.cancel()
        count -= len(unborn)
        order = sorted(self.staying, key=lambda m: STAY.index(m.state))
        going = order[len(order) - count :]
        for member in going:
            member.leaving = True
        return [self._spawn(self._leave(member)) for member in going]

    async def _leave(self, member: Member) -> None:
        try:
            await within(self.weights.may_leave(), self._deadlines.weights_s, f"letting {member.name} leave")
        except RunFailed as error:  # fault boundary: a publish that does not end has its own deadlines
            member.leaving = False
            self._on.tell("worker", f"{member.name} stays: {error}")
            return
        if member.gone:
            return  # it was lost meanwhile
        was = member.state
        member.move(MemberState.DRAINING)
        handed = self._on.lost(member)
        end, how = MemberState.RETIRED, "left"
        if was is not MemberState.JOINING:
            try:
                await within(self._watch.hand_on(member), self._deadlines.weights_s, f"draining {member.name}")
            except RunFailed as error:  # fault boundary: it ends without having handed on, and its work is done again
                end, how = MemberState.DEAD, f"was ended ({error})"
        await member.handle.stop()
        member.move(end)
        moved = f", {len(handed)} tickets handed on" if handed else ""
        self._on.tell("worker", f"{member.name} {how}{moved}")

    # --- lost and replaced ---

    def lose(self, member: Member, why: str) -> None:
        """End a member that failed, and replace it. One that is gone or leaves anyway stays as it is."""
        if member.state not in STAY:
            return
        member.move(MemberState.DEAD)
        member.lost.set()
        self._watch.call_back()
        self.weights.forget(member)
        handed = self._on.lost(member)
        again = f"; {len(handed)} tickets begin again" if handed else ""
        self._on.tell("lost", f"{member.name} is lost: {why}{again}")
        self._spawn(member.handle.stop())
        if not member.leaving:
            self._replace(why, alone=True)

    def _replace(self, why: str, alone: bool = False) -> None:
        wait_s = self._budget.failed(time.monotonic(), alone)
        if wait_s is not None:
            self._coming.append(self._spawn(self._join_later(0.0 if self.spares.ready else wait_s)))
            return
        if self.count:
            text = f"no more replacements (recovery.worker_failures); the run goes on with {self.count}"
            self._on.tell("worker", text)
        self._fewer(why)

    def _fewer(self, why: str) -> None:
        """One is gone that no other comes for. Without any left the run is over, once its failures are what took them;
        else it still starts, and who waits for that hears why."""
        if self.count:
            self._spawn(asyncio.to_thread(self._on.left, self.count))
        elif self._budget.spent > self._limits.failures:
            self._on.over(
                RunFailed(
                    f"{self._budget.spent} rollout workers were lost, more than recovery.worker_failures "
                    f"({self._limits.failures}); the last: {why}"
                )
            )

    async def _join_later(self, wait_s: float) -> None:
        await asyncio.sleep(wait_s)
        task = asyncio.current_task()
        assert task is not None, "it runs as the task that _replace made"
        self._coming.remove(task)
        try:
            await self._join(self.spares.take() or self._new_member(), again=True)
        except RunFailed as error:  # fault boundary: it was told, and counts as one more that was lost
            self._replace(str(error))


def _differences(wanted: WorkerIdentity, found: WorkerIdentity) -> str:
    names = [name for name in WorkerIdentity.__slots__ if getattr(wanted, name) != getattr(found, name)]
    return ", ".join(f"{name} ({getattr(found, name)}, the others {getattr(wanted, name)})" for name in names)


def _words(error: BaseException) -> str:
    return str(error) or type(error).__name__
