"""The pool at work, as coroutines of one event loop: joining, leaving, generating, publishing.

In: calls from its facade (pool.py), on the loop. Out: finished tickets, events. Who waits for whom: a joiner waits for
a publish under way to end, then takes the current version and proves it, and again if another came meanwhile; a
publish waits for nobody but the members it began with; a leaver gives back its tickets with the tokens already made and
then ends. Example: version 3 is being published while a worker starts; it takes version 3 when that is admitted, and
traffic only then. Left out: threads (pool.py), who gets what (dispatch.py), Ray (handles).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from actors.types import PolicyVersion
from cluster.columns import Ref
from cluster.errors import RunFailed
from cluster.pool.dispatch import Dispatcher
from cluster.pool.handle import RolloutHandle, WorkerError, WorkerIdentity, WorkerLost
from cluster.pool.member import Member, MemberState
from cluster.pool.ticket import Finished, Ticket

Judge = Callable[[np.ndarray], str | None]
"""What is wrong with a worker's log-probs of the recorded samples; None if it computes with the weights it holds."""


@dataclass(frozen=True, slots=True)
class Current:
    """What a joiner takes: the version, its buckets (none: it is what engines load from disk), and the proof."""

    version: PolicyVersion
    buckets: tuple[Ref, ...]
    probe: Ref | None
    judge: Judge | None


@dataclass(frozen=True, slots=True)
class Deadlines:
    start_s: float
    generate_s: float
    weights_s: float


class Core:
    """start: makes the handle of a new worker by name. tell: (kind, text) of what happened to members."""

    def __init__(
        self,
        start: Callable[[str], RolloutHandle],
        *,
        sequences: int,
        deadlines: Deadlines,
        tell: Callable[[str, str], None],
    ) -> None:
        self._start = start
        self._deadlines = deadlines
        self._tell = tell
        self.members: dict[str, Member] = {}
        self.dispatcher = Dispatcher(sequences)
        self._ends: dict[int, asyncio.Future[Finished]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._made = 0
        self._identity: WorkerIdentity | None = None
        self._current: Current | None = None
        self._settled = asyncio.Event()
        """Set while no publish is under way and there is a version to serve."""
        self._publishing: list[tuple[Member, list[asyncio.Task[Any]]]] = []

    # --- members ---

    @property
    def healthy(self) -> list[Member]:
        """In the order in which they were started."""
        return [m for m in self.members.values() if m.state is MemberState.HEALTHY]

    @property
    def staying(self) -> list[Member]:
        """Those that serve or will."""
        wanted = (MemberState.JOINING, MemberState.HEALTHY, MemberState.SUSPECT)
        return [m for m in self.members.values() if m.state in wanted]

    def add(self, count: int) -> list[asyncio.Task[None]]:
        """Start so many workers; a task each that ends when it is healthy."""
        return [self._spawn(self._join(self._new_member())) for _ in range(count)]

    async def remove(self, count: int) -> None:
        """Let the newest go; those that have not joined yet first. Returns when they are gone."""
        order = sorted(self.staying, key=lambda m: m.state is MemberState.JOINING)
        await asyncio.gather(*(self._leave(member) for member in order[len(order) - count :]))

    def _new_member(self) -> Member:
        name = f"rollout-{self._made}"
        self._made += 1
        member = self.members[name] = Member(name, self._start(name))
        return member

    async def _join(self, member: Member) -> None:
        try:
            await self._prepare(member)
        except BaseException as error:
            if not member.gone and member.state is not MemberState.DRAINING:
                member.move(MemberState.DEAD)
                self._tell("worker", f"{member.name} could not join: {_words(error)}")
                await member.handle.stop()
                raise
            return  # it was asked to leave before it had joined
        if member.state is MemberState.JOINING:
            member.move(MemberState.HEALTHY)
            self._tell("worker", f"{member.name} joined at version {member.version}")
            self.dispatcher.join(member.name)
            self._dispatch()

    async def _prepare(self, member: Member) -> None:
        """From its start to the current weights, proved."""
        identity = await _within(member.handle.start(), self._deadlines.start_s, f"starting {member.name}")
        if self._identity is None:
            self._identity = identity
        elif other := _differences(self._identity, identity):
            raise RunFailed(f"{member.name} has another {other}; mend its node's installation")
        while True:
            await self._settled.wait()
            current = self._current
            await _within(self._bring_to(member, current), self._deadlines.weights_s, f"publishing to {member.name}")
            if self._current is current and self._settled.is_set():
                return

    async def _bring_to(self, member: Member, current: Current) -> None:
        handle = member.handle
        if member.version == current.version.number:
            pass
        elif current.buckets:
            await handle.begin_publish(current.version.number)
            await asyncio.gather(*(handle.receive(bucket) for bucket in current.buckets))
            await handle.finish_publish(current.version)
        else:
            await handle.adopt(current.version)
        if current.probe is not None and (wrong := current.judge(await handle.probe(current.probe))) is not None:
            raise RunFailed(f"{member.name} {wrong}")
        if current.buckets:
            await handle.admit(current.version)
        member.version = current.version.number

    async def _leave(self, member: Member) -> None:
        was = member.state
        member.move(MemberState.DRAINING)
        handed = self.dispatcher.leave(member.name)
        if was is MemberState.HEALTHY:
            await _within(member.handle.interrupt(), self._deadlines.weights_s, f"draining {member.name}")
            while member.work:  # the interrupted calls come back by themselves
                await asyncio.sleep(0.005)
        await member.handle.stop()
        member.move(MemberState.RETIRED)
        moved = f", {len(handed)} tickets handed on" if handed else ""
        self._tell("worker", f"{member.name} left{moved}")

    # --- generating ---

    def offer(self, ticket: Ticket) -> asyncio.Future[Finished]:
        """Queue a ticket; its future ends with all its samples whole, whoever made them."""
        end = asyncio.get_running_loop().create_future()
        self._ends[ticket.number] = end
        self.dispatcher.offer(ticket)
        self._dispatch()
        return end

    def _dispatch(self) -> None:
        for name, ticket in self.dispatcher.assign():
            member = self.members[name]
            member.work[ticket.number] = ticket
            self._spawn(self._work(member, ticket))

    async def _work(self, member: Member, ticket: Ticket) -> None:
        end = self._ends[ticket.number]
        what = f"generating on {member.name}"
        try:
            batch, recorded, stats = await _within(member.handle.generate(ticket), self._deadlines.generate_s, what)
        except Exception as error:  # fault boundary: who waits for the ticket hears of it
            if not end.done():
                end.set_exception(error)
            return
        finally:
            member.work.pop(ticket.number, None)
            self.dispatcher.done(member.name, ticket)
        if stats.unfinished:
            self.dispatcher.offer(ticket.handed_on(batch, stats.response_tokens + stats.partial_tokens), first=True)
        elif not end.done():
            del self._ends[ticket.number]
            end.set_result(Finished(ticket, batch, recorded, stats, member.name))
        self._dispatch()

    # --- weights ---

    def adopt(self, version: PolicyVersion) -> None:
        """What engines load from disk is `version`: the first that joiners take."""
        self._current = Current(version, (), None, None)
        self._settled.set()

    def calibrated(self, probe: Ref, judge: Judge) -> None:
        """From now on a joiner must compute as the learner did for these recorded samples."""
        self._current = replace(self._current, probe=probe, judge=judge)

    def begin_publish(self, number: int) -> None:
        """Start the next version on every healthy member; from here to `admit` they hold none."""
        self._settled.clear()
        self._publishing = [(m, [self._spawn(m.handle.begin_publish(number))]) for m in self.healthy]

    def receive(self, bucket: Ref) -> None:
        for member, calls in self._publishing:
            calls.append(self._spawn(member.handle.receive(bucket)))

    async def finish_publish(self, version: PolicyVersion) -> None:
        """Returns when each has proved that it holds the version."""

        async def finish(member: Member, calls: Sequence[asyncio.Task[Any]]) -> None:
            await asyncio.gather(*calls, member.handle.finish_publish(version))

        await self._each(finish, f"publishing version {version.number}")

    async def probe(self, batch: Ref) -> list[np.ndarray]:
        """The log-probs of recorded samples by each that a publish is under way to, else by each healthy one."""
        members = [m for m, _ in self._publishing] or self.healthy
        calls = (m.handle.probe(batch) for m in members)
        return await _within(asyncio.gather(*calls), self._deadlines.weights_s, "probing the engines")

    async def admit(self, current: Current) -> None:
        """Let them take traffic at the new version, and joiners take it."""

        async def admit(member: Member, _: object) -> None:
            await member.handle.admit(current.version)
            member.version = current.version.number

        await self._each(admit, f"admitting version {current.version.number}")
        self._publishing = []
        self._current = current
        self._settled.set()

    async def _each(self, verb: Callable[[Member, list], Any], what: str) -> None:
        """The verb for every member of the publish. One that left meanwhile is none of its business."""

        async def one(member: Member, calls: list[asyncio.Task[Any]]) -> None:
            try:
                await verb(member, calls)
            except (WorkerLost, WorkerError):
                if not (member.gone or member.state is MemberState.DRAINING):
                    raise

        await _within(asyncio.gather(*(one(*each) for each in self._publishing)), self._deadlines.weights_s, what)

    # --- the end ---

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*(m.handle.stop() for m in self.members.values() if not m.gone))

    def _spawn(self, coroutine: Any) -> asyncio.Task[Any]:
        """A task that is kept from the garbage collector. Its failure is told or set where it happens, and raised for
        who awaits it."""

        def forget(task: asyncio.Task[Any]) -> None:
            self._tasks.discard(task)
            if not task.cancelled():
                task.exception()

        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(forget)
        return task


async def _within(answer: Any, timeout_s: float, what: str) -> Any:
    """RunFailed, naming `what`, when a worker is lost, fails, or does not answer in time."""
    try:
        return await asyncio.wait_for(answer, timeout_s)
    except TimeoutError as error:
        raise RunFailed(f"{what}: no answer within {timeout_s:g} s") from error
    except WorkerLost as error:
        raise RunFailed(f"{what}: the worker died ({error})") from error
    except WorkerError as error:
        raise RunFailed(f"{what}: {error}") from error


def _differences(wanted: WorkerIdentity, found: WorkerIdentity) -> str:
    names = [name for name in WorkerIdentity.__slots__ if getattr(wanted, name) != getattr(found, name)]
    return ", ".join(f"{name} ({getattr(found, name)}, the others {getattr(wanted, name)})" for name in names)


def _words(error: BaseException) -> str:
    return str(error) or type(error).__name__
