"""The pool at work, as coroutines of one event loop: joining, leaving, generating, publishing.

In: calls from its facade (pool.py), on the loop. Out: finished tickets, events. Who waits for whom: a joiner waits for
a publish under way to end, then takes the current version and proves it, and again if another came meanwhile; a
publish waits for nobody but the members it began with; a leaver gives back its tickets with the tokens already made and
then ends. Example: version 3 is being published while a worker starts; it takes version 3 when that is admitted, and
traffic only then. Left out: threads (pool.py), who gets what (dispatch.py), Ray (handles).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from actors.spans import Span
from cluster.errors import RunFailed
from cluster.pool.dispatch import Dispatcher
from cluster.pool.handle import RolloutHandle, WorkerIdentity, WorkerPulse
from cluster.pool.member import Member, MemberState
from cluster.pool.ticket import Finished, Ticket
from cluster.pool.weights import Weights, all_within, within

WATCH_EVERY_S = 1.0
"""Between two looks at a worker's cache."""


@dataclass(frozen=True, slots=True)
class Deadlines:
    start_s: float
    generate_s: float
    weights_s: float


class Core:
    """start: makes the handle of a new worker by name. tell: (kind, text) of what happened to members. lost: hears, in
    a thread of its own, how many members are left when one could not join."""

    def __init__(
        self,
        start: Callable[[str], RolloutHandle],
        *,
        sequences: int,
        deadlines: Deadlines,
        tell: Callable[[str, str], None],
        lost: Callable[[int], None] = lambda count: None,
    ) -> None:
        self._start = start
        self._lost = lost
        self._deadlines = deadlines
        self._tell = tell
        self.members: dict[str, Member] = {}
        self.dispatcher = Dispatcher(sequences)
        self._ends: dict[int, asyncio.Future[Finished]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._made = 0
        self._held = False
        self._identity: WorkerIdentity | None = None
        self.weights = Weights(lambda: self.healthy, self._spawn, deadlines.weights_s)

    # --- members ---

    @property
    def healthy(self) -> list[Member]:
        """In the order in which they were started."""
        return [m for m in self.members.values() if m.state is MemberState.HEALTHY]

    @property
    def staying(self) -> list[Member]:
        """Those that serve or will."""
        wanted = (MemberState.JOINING, MemberState.HEALTHY, MemberState.SUSPECT)
        return [m for m in self.members.values() if m.state in wanted and not m.leaving]

    def add(self, count: int) -> list[asyncio.Task[None]]:
        """Start so many workers; a task each that ends when it is healthy."""
        return [self._spawn(self._join(self._new_member())) for _ in range(count)]

    def remove(self, count: int) -> list[asyncio.Task[None]]:
        """Let the newest go; those that have not joined yet first. A task each that ends when it is gone."""
        order = sorted(self.staying, key=lambda m: m.state is MemberState.JOINING)
        going = order[len(order) - count :]
        for member in going:
            member.leaving = True
        return [self._spawn(self._leave(member)) for member in going]

    def _new_member(self) -> Member:
        name = f"rollout-{self._made}"
        self._made += 1
        member = self.members[name] = Member(name, self._start(name), asked_at=time.monotonic())
        return member

    async def _join(self, member: Member) -> None:
        try:
            await self._prepare(member)
        except BaseException as error:
            if not member.gone and member.state is not MemberState.DRAINING:
                member.move(MemberState.DEAD)
                self._tell("worker", f"{member.name} could not join: {_words(error)}")
                self._spawn(asyncio.to_thread(self._lost, len(self.staying)))
                await member.handle.stop()
                raise
            return  # it was asked to leave before it had joined
        if member.state is MemberState.JOINING:
            member.move(MemberState.HEALTHY)
            engine_s, proof_s = member.engine_at - member.asked_at, time.monotonic() - member.engine_at
            took = f"engine {engine_s:.1f} s, weights and proof {proof_s:.2f} s"
            self._tell("worker", f"{member.name} joined at version {member.version} ({took})")
            self.dispatcher.join(member.name)
            self._dispatch()
            self._spawn(self._watch(member))

    async def _watch(self, member: Member) -> None:
        """Let the cache's pressure set the member's limit, for as long as it is here."""
        while member.state is MemberState.HEALTHY:
            await asyncio.sleep(WATCH_EVERY_S)
            try:
                pulse = await within(member.handle.pulse(), self._deadlines.weights_s, f"asking {member.name}")
            except RunFailed as error:  # fault boundary: whoever waits for its work hears of it by that
                if member.state is MemberState.HEALTHY:
                    self._tell("worker", str(error))
                return
            member.spans += pulse.spans
            self.dispatcher.feel(member.name, pulse.pressure)
            self._dispatch()

    async def _prepare(self, member: Member) -> None:
        """From its start to the current weights, proved."""
        identity = await within(member.handle.start(), self._deadlines.start_s, f"starting {member.name}")
        if self._identity is None:
            self._identity = identity
        elif other := _differences(self._identity, identity):
            raise RunFailed(f"{member.name} has another {other}; mend its node's installation")
        member.engine_at = time.monotonic()
        await self.weights.bring_up_to_date(member)

    async def _leave(self, member: Member) -> None:
        await within(self.weights.may_leave(), self._deadlines.weights_s, f"letting {member.name} leave")
        was = member.state
        member.move(MemberState.DRAINING)
        handed = self.dispatcher.leave(member.name)
        end, how = MemberState.RETIRED, "left"
        if was is MemberState.HEALTHY:
            try:
                await within(self._drain(member), self._deadlines.weights_s, f"draining {member.name}")
            except RunFailed as error:  # fault boundary: it ends without having handed on, and its work is done again
                end, how = MemberState.DEAD, f"was ended ({error})"
        await member.handle.stop()
        member.move(end)
        moved = f", {len(handed)} tickets handed on" if handed else ""
        self._tell("worker", f"{member.name} {how}{moved}")

    async def _drain(self, member: Member) -> None:
        await member.handle.interrupt()
        while member.work:  # the interrupted calls come back by themselves
            await asyncio.sleep(0.005)

    async def pulses(self) -> dict[str, WorkerPulse]:
        """Of each healthy member."""
        members = self.healthy
        asked = {m.name: m.handle.pulse() for m in members}
        found = await all_within(asked, self._deadlines.weights_s, "asking the workers")
        for member, pulse in zip(members, found, strict=True):
            member.spans += pulse.spans
        return {member.name: pulse for member, pulse in zip(members, found, strict=True)}

    def take_spans(self) -> dict[str, list[Span]]:
        """What every member did since the last call, as far as its pulses have told."""
        taken = {member.name: member.spans for member in self.members.values() if member.spans}
        for name in taken:
            self.members[name].spans = []
        return taken

    # --- generating ---

    def offer(self, ticket: Ticket) -> asyncio.Future[Finished]:
        """Queue a ticket; its future ends with all its samples whole, whoever made them."""
        end = asyncio.get_running_loop().create_future()
        self._ends[ticket.number] = end
        self.dispatcher.offer(ticket)
        self._dispatch()
        return end

    async def hold(self) -> None:
        """Give nothing out until `go_on`, and stop what is being generated where it stands. Its tickets wait in the
        queue, first, with the tokens already made. Returns when no member decodes."""
        self._held = True
        members = self.healthy
        stopping = {m.name: m.handle.interrupt() for m in members}
        await all_within(stopping, self._deadlines.weights_s, "stopping the generation")
        while any(member.work for member in members):  # the interrupted calls come back by themselves
            await asyncio.sleep(0.002)

    def go_on(self) -> None:
        self._held = False
        self._dispatch()

    def _dispatch(self) -> None:
        if self._held:
            return
        for name, ticket in self.dispatcher.assign():
            member = self.members[name]
            member.work[ticket.number] = ticket
            self._spawn(self._work(member, ticket))

    async def _work(self, member: Member, ticket: Ticket) -> None:
        end = self._ends[ticket.number]
        what = f"generating on {member.name}"
        try:
            batch, recorded, stats = await within(member.handle.generate(ticket), self._deadlines.generate_s, what)
        except Exception as error:  # fault boundary: who waits for the ticket hears of it
            if member.state is MemberState.HEALTHY:
                if not end.done():
                    end.set_exception(error)
                return
            # Its worker was leaving and did not come to the end of it: others make it again, from what there was.
            self.dispatcher.offer(ticket, first=True)
            self._dispatch()
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


def _differences(wanted: WorkerIdentity, found: WorkerIdentity) -> str:
    names = [name for name in WorkerIdentity.__slots__ if getattr(wanted, name) != getattr(found, name)]
    return ", ".join(f"{name} ({getattr(found, name)}, the others {getattr(wanted, name)})" for name in names)


def _words(error: BaseException) -> str:
    return str(error) or type(error).__name__
