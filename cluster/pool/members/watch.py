"""Who looks after the members that serve: whether they answer, get on, and keep up with the others.

In: pulses. Out: members that are lost; members that rest. One that decodes far slower than the others (straggler.py)
becomes a suspect: it gets no more work, others go on with its tickets from the tokens already made, publishes pass it
by. After its rest it proves the present version as a joiner does and serves again. Who waits for whom: its rest begins
when its work is handed on, and ends at once when nobody else is left that serves. Example: three members, one ten times
slower; its two tickets go to the others after a second or two, it rests for 30 s, and for 60 if it is slow again.
Left out: who is slow (straggler.py), who replaces a lost one (roster.py).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from actors.rollouts.pace import Pace
from cluster.errors import RunFailed
from cluster.pool.members.handle import WorkerError, WorkerLost
from cluster.pool.members.member import Member, MemberState
from cluster.pool.members.recovery import Progress, RecoveryLimits
from cluster.pool.members.straggler import Rests, Slow, Stragglers
from cluster.pool.members.weights import Weights, within

WATCH_EVERY_S = 1.0
"""Between two looks at a worker, and at least between two changes of its limit."""
SOONEST_S, LOOKS_A_S = 0.25, 64
"""Where who is slow is to be found out, it is looked at more often, as long as that is so few looks for all."""
AGAIN_S = 0.05
"""A ticket may reach a worker after the call that was to interrupt it."""


@dataclass(frozen=True, slots=True)
class Listener:
    """Who hears what of the members. joined, lost: it serves from now on, or no more. pressed: (member, pressure of its
    cache). over: no more workers will come. tell: (kind, text) for people. left: how many workers are left when one
    could not join, in a thread of its own."""

    joined: Callable[[Member], None]
    lost: Callable[[Member], list[Any]]
    pressed: Callable[[Member, float], None]
    over: Callable[[RunFailed], None]
    tell: Callable[[str, str], None]
    left: Callable[[int], None]


class Watch:
    """members: all there ever were. lose: ends one that failed, with the reason. spawn: keeps a task."""

    def __init__(
        self,
        limits: RecoveryLimits,
        weights: Weights,
        listener: Listener,
        *,
        members: Mapping[str, Member],
        lose: Callable[[Member, str], None],
        spawn: Callable[[Coroutine[Any, Any, Any]], asyncio.Task[Any]],
    ) -> None:
        self._limits = limits
        self._weights = weights
        self._on = listener
        self._members = members
        self._lose = lose
        self._spawn = spawn
        self._stragglers = None if limits.slow_factor is None else Stragglers(limits.slow_factor)
        self._rests = Rests(limits.rest_s)
        self._watched = 0
        self._called_back: dict[str, asyncio.Event] = {}
        """Of those that rest."""

    async def over(self, member: Member) -> None:
        """Until it serves no more."""
        self._watched += 1
        try:
            await self._look_at(member)
        finally:
            self._watched -= 1
            if self._stragglers is not None:
                self._stragglers.forget(member.name)

    async def _look_at(self, member: Member) -> None:
        """Lose it when it answers nothing or makes nothing, let it rest when it is far slower than the others, and let
        the cache's pressure set its limit."""
        felt_at = time.monotonic()
        progress = Progress(self._limits.progress_s, felt_at)
        while member.state in (MemberState.HEALTHY, MemberState.SUSPECT):
            await asyncio.sleep(self._pause_s())
            try:
                pulse = await asyncio.wait_for(member.handle.pulse(), self._limits.silence_s)
            except TimeoutError:
                self._lose(member, f"it answered nothing for {self._limits.silence_s:g} s")
                return
            except (WorkerLost, WorkerError) as error:
                self._lose(member, f"it died ({error})")
                return
            member.spans += pulse.spans
            now = time.monotonic()
            idle = not pulse.open or self._weights.publishing
            stuck_s = progress.stuck_for(pulse.tokens_made, idle, now)
            if stuck_s is not None:
                self._lose(member, f"it made no token for {stuck_s:.0f} s with {pulse.open} tickets under way")
                return
            self._compare(member, pulse.pace, now)
            if now - felt_at >= WATCH_EVERY_S:
                self._on.pressed(member, pulse.pressure)
                felt_at = now

    def _pause_s(self) -> float:
        """Until the next look at one member."""
        if self._stragglers is None:
            return WATCH_EVERY_S
        return min(WATCH_EVERY_S, max(SOONEST_S, self._watched / LOOKS_A_S))

    # --- slow ---

    def _compare(self, member: Member, pace: Pace, now: float) -> None:
        """Let it rest when it decodes far slower than the others that serve."""
        # Between two versions nobody decodes, and who is of a publish comes through it with the others.
        if self._stragglers is None or member.state is not MemberState.HEALTHY or self._weights.publishing:
            return
        others = (other.name for other in self._members.values() if other is not member and _serves_on(other))
        slow = self._stragglers.look(member.name, pace, others, now)
        if slow is not None and not member.leaving:
            self._stragglers.begin_anew(member.name)
            self._suspect(member, slow, now)

    def _suspect(self, member: Member, slow: Slow, now: float) -> None:
        rest_s = self._rests.next_s(member.name, now)
        member.move(MemberState.SUSPECT)
        self._called_back[member.name] = asyncio.Event()
        handed = len(self._on.lost(member))
        moved = f"{handed} {'ticket goes' if handed == 1 else 'tickets go'} to others"
        self._on.tell("suspect", f"{member.name} is suspected: {slow}; {moved}, it rests for {rest_s:g} s")
        self._spawn(self._rest(member, rest_s))

    async def _rest(self, member: Member, rest_s: float) -> None:
        """From the moment in which it is suspected until it serves again."""
        called_back = self._called_back[member.name]
        try:
            await within(self.hand_on(member), self._limits.silence_s, f"taking back the work of {member.name}")
            called = asyncio.ensure_future(called_back.wait())
            await asyncio.wait({called}, timeout=rest_s)
            called.cancel()
            if member.state is not MemberState.SUSPECT:
                return  # it was lost or has left meanwhile
            began = time.monotonic()
            await self._weights.bring_up_to_date(member)
        except RunFailed as error:  # fault boundary: the worker's
            self._lose(member, str(error))
            return
        finally:
            del self._called_back[member.name]
        if member.state is MemberState.SUSPECT:
            member.move(MemberState.HEALTHY)
            now = time.monotonic()
            self._rests.back(member.name, now)
            took = f"weights and proof {now - began:.2f} s"
            self._on.tell("worker", f"{member.name} is back at version {member.version} ({took})")
            self._on.joined(member)

    async def hand_on(self, member: Member) -> None:
        """Returns when it has no work: what is unfinished came back with the tokens already made."""
        while member.work and not member.gone:
            await member.handle.interrupt()
            await asyncio.sleep(AGAIN_S)

    def call_back(self) -> None:
        """Let nobody rest while nobody serves."""
        if not any(member.state is MemberState.HEALTHY for member in self._members.values()):
            for called_back in self._called_back.values():
                called_back.set()


def _serves_on(member: Member) -> bool:
    return member.state is MemberState.HEALTHY and not member.leaving
