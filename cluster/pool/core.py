"""The pool at work, as coroutines of one event loop: tickets that go to workers, come back, and begin again elsewhere.

In: calls from its facade (pool.py), on the loop. Out: finished tickets, events. Example: version 3 is being published
while a worker starts; it takes version 3 when that is admitted, and traffic only then. A ticket whose worker is lost
goes to another, from where it was given out; one that fails on several workers ends with the reason. Left out: threads
(pool.py), who gets what (dispatch.py), who is a member (cluster/pool/members/roster.py), Ray (handles).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from actors.rollouts.generation import RolloutStats
from actors.rollouts.spans import Span
from cluster.errors import RunFailed
from cluster.experience.columns import Ref
from cluster.pool.dispatch import Dispatcher
from cluster.pool.members.handle import RolloutHandle, WorkerError, WorkerLost, WorkerPulse
from cluster.pool.members.member import Member, MemberState
from cluster.pool.members.recovery import RecoveryLimits
from cluster.pool.members.roster import Deadlines, Listener, Members
from cluster.pool.members.ticket import Finished, Ticket
from cluster.pool.members.watch import AGAIN_S


class Core:
    """start: makes the handle of a new worker by name. tell: (kind, text) of what happened to members. left: hears, in
    a thread of its own, how many members are left when one could not join."""

    def __init__(
        self,
        start: Callable[[str], RolloutHandle],
        *,
        sequences: int,
        deadlines: Deadlines,
        limits: RecoveryLimits,
        tell: Callable[[str, str], None],
        left: Callable[[int], None] = lambda count: None,
    ) -> None:
        self._deadlines = deadlines
        self._limits = limits
        self.dispatcher = Dispatcher(sequences)
        self._ends: dict[int, asyncio.Future[Finished]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._held = False
        self._over: RunFailed | None = None
        listener = Listener(
            joined=self._joined,
            lost=lambda member: self.dispatcher.leave(member.name),
            pressed=self._pressed,
            over=self._end_all,
            tell=tell,
            left=left,
        )
        self.members = Members(start, deadlines=deadlines, limits=limits, listener=listener, spawn=self._spawn)
        self.weights = self.members.weights

    def _joined(self, member: Member) -> None:
        self.dispatcher.join(member.name)
        self._dispatch()

    def _pressed(self, member: Member, pressure: float) -> None:
        self.dispatcher.feel(member.name, pressure)
        self._dispatch()

    async def pulses(self) -> dict[str, WorkerPulse]:
        """Of each healthy member that answers; who does not is found out by its watch."""
        members = self.members.healthy
        asked = [asyncio.wait_for(m.handle.pulse(), self._limits.silence_s) for m in members]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        found = {m.name: (m, p) for m, p in zip(members, answers, strict=True) if isinstance(p, WorkerPulse)}
        for member, pulse in found.values():
            member.spans += pulse.spans
        return {name: pulse for name, (_, pulse) in found.items()}

    def take_spans(self) -> dict[str, list[Span]]:
        """What every member did since the last call, as far as its pulses have told."""
        members = self.members.by_name
        taken = {name: member.spans for name, member in members.items() if member.spans}
        for name in taken:
            members[name].spans = []
        return taken

    # --- generating ---

    def offer(self, ticket: Ticket) -> asyncio.Future[Finished]:
        """Queue a ticket; its future ends with all its samples whole, whoever made them."""
        end = asyncio.get_running_loop().create_future()
        if self._over is not None:
            end.set_exception(self._over)
            return end
        self._ends[ticket.number] = end
        self.dispatcher.offer(ticket)
        self._dispatch()
        return end

    async def hold(self) -> None:
        """Give nothing out until `go_on`, and stop what is being generated where it stands. Its tickets wait in the
        queue, first, with the tokens already made. Returns when no member decodes."""
        self._held = True
        members, due = self.members.with_work, 0.0
        while working := [m for m in members if m.work and not m.gone]:
            if time.monotonic() >= due:
                asked = {m: m.handle.interrupt() for m in working}
                await self.weights.surviving(asked, "stopping the generation")
                due = time.monotonic() + AGAIN_S
            await asyncio.sleep(0.002)  # the interrupted calls come back by themselves

    async def forget(self) -> None:
        """Drop every ticket: what is being generated is stopped, and nobody waits for it any more."""
        for end in self._ends.values():
            end.cancel()
        self._ends.clear()
        await self.hold()
        self.weights.unlink()
        self.dispatcher.clear()
        self._held = False

    def go_on(self) -> None:
        self._held = False
        self._dispatch()

    def _dispatch(self) -> None:
        if self._held:
            return
        for name, ticket in self.dispatcher.assign():
            member = self.members.by_name[name]
            member.work[ticket.number] = ticket
            self._spawn(self._work(member, ticket))

    async def _work(self, member: Member, ticket: Ticket) -> None:
        made: tuple[Ref, Ref, RolloutStats] | None = None
        failure = ""
        try:
            made = await self._answer(member, ticket)
        except TimeoutError:  # fault boundary: the worker's
            failure = f"no answer within {self._deadlines.generate_s:g} s"
            self.members.lose(member, f"generating: {failure}")
        except WorkerLost as error:  # fault boundary: the worker's
            failure = f"the worker died ({error})"
            self.members.lose(member, f"it died while generating ({error})")
        except WorkerError as error:  # fault boundary: its prompts', maybe
            failure = str(error)
        except Exception as error:  # fault boundary: of a kind that nobody foresaw, and who waits must hear of it
            failure = f"{type(error).__name__}: {error}"
        finally:
            member.work.pop(ticket.number, None)
            self.dispatcher.done(member.name, ticket)
        if made is None:
            self._try_again(member, ticket, failure)
        else:
            self._came_back(member, ticket, *made)
        self._dispatch()

    async def _answer(self, member: Member, ticket: Ticket) -> tuple[Ref, Ref, RolloutStats]:
        """What the member makes of the ticket. Once it is given up its answer counts no more, however late it comes."""
        call = asyncio.ensure_future(member.handle.generate(ticket))
        lost = asyncio.ensure_future(member.lost.wait())
        try:
            await asyncio.wait({call, lost}, timeout=self._deadlines.generate_s, return_when=asyncio.FIRST_COMPLETED)
            if call.done():
                return call.result()
            if lost.done():
                raise WorkerLost("it was given up")
            raise TimeoutError
        finally:
            call.cancel()
            lost.cancel()

    def _try_again(self, member: Member, ticket: Ticket, failure: str) -> None:
        """Others make it again."""
        left = member.state is not MemberState.HEALTHY and member.leaving
        tries = ticket.tries if left else ticket.tries + 1
        if tries < self._limits.attempts:
            # From its prompts again: what was carried may be what is lost.
            again = replace(ticket, tries=tries, prefer=None, avoid=member.name, carried=None, carried_tokens=0)
            self.dispatcher.offer(again, first=True)
        elif (end := self._ends.pop(ticket.number, None)) is not None and not end.done():
            tried = f" (tried {tries} times, recovery.attempts)" if tries > 1 else ""
            end.set_exception(RunFailed(f"generating on {member.name}: {failure}{tried}"))

    def _came_back(self, member: Member, ticket: Ticket, batch: Ref, recorded: Ref, stats: RolloutStats) -> None:
        if stats.unfinished:
            self.dispatcher.offer(ticket.handed_on(batch, stats.response_tokens + stats.partial_tokens), first=True)
        elif (end := self._ends.pop(ticket.number, None)) is not None and not end.done():
            end.set_result(Finished(ticket, batch, recorded, stats, member.name))

    # --- the end ---

    def _end_all(self, error: RunFailed) -> None:
        """Nobody will make what is still waited for."""
        self._over = error
        for end in self._ends.values():
            if not end.done():
                end.set_exception(error)
        self._ends.clear()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*(m.handle.stop() for m in self.members.by_name.values() if not m.gone))

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
