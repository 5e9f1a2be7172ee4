"""The pool's weights: the version that it serves, the publish under way, and what a joiner must take and prove.

In: versions and buckets from the publisher, on the pool's event loop. Out: members that hold them, proved. A publish
begins with the healthy members of that moment and waits for no other; a joiner waits until it is settled, and one that
was overtaken goes along with the next, or versions that follow each other fast would leave it behind for ever. One that
rested comes back as a joiner. Left out: the learner's side and the bound of the proof
(cluster/training/parts/publish.py), who is a member (roster.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from actors.transports.interface import Link
from actors.types import PolicyVersion
from cluster.errors import RunFailed
from cluster.experience.columns import Ref
from cluster.pool.members.handle import WorkerError, WorkerLost
from cluster.pool.members.member import Member, MemberState

T = TypeVar("T")
Judge = Callable[[np.ndarray], str | None]
"""What is wrong with a worker's log-probs of the recorded samples; None if it computes with the weights it holds."""


COME = (MemberState.JOINING, MemberState.SUSPECT)
"""States of those that take the present version by themselves: one that rests does so before it serves again."""


@dataclass(frozen=True, slots=True)
class Proof:
    """Recorded samples, by reference, and what a worker's log-probs of them must be."""

    recorded: Ref
    judge: Judge


@dataclass(frozen=True, slots=True)
class Current:
    """What a joiner takes: the version, its buckets (none: it is what engines load from disk), and the proof (None
    until there are recorded samples)."""

    version: PolicyVersion
    buckets: tuple[Ref, ...]
    proof: Proof | None


class Weights:
    """healthy: the members that a publish goes to. lose: ends one that failed, with the reason. spawn: keeps a task.
    deadline_s: of each step of a publish."""

    def __init__(
        self,
        healthy: Callable[[], list[Member]],
        lose: Callable[[Member, str], None],
        spawn: Callable[[Any], asyncio.Task[Any]],
        deadline_s: float,
    ) -> None:
        self._healthy = healthy
        self._lose = lose
        self._spawn = spawn
        self._deadline_s = deadline_s
        self._current: Current | None = None
        self._settled = asyncio.Event()
        """Set while no publish is under way and there is a version to serve."""
        self._publishing: list[tuple[Member, list[asyncio.Task[Any]]]] = []
        self._overtaken: dict[str, tuple[Member, asyncio.Future[None]]] = {}
        self._along: dict[str, tuple[Member, asyncio.Future[None]]] = {}
        """Joiners that the publish under way took along, and who waits for their admission."""
        self.takes_along = True
        """Not where what is published is a change to the version before, which an overtaken joiner does not hold."""
        self._linked: tuple[str, ...] = ()
        """Members of the group that weights come through, where they do not come through the object store."""

    async def bring_up_to_date(self, member: Member) -> None:
        """The present version, proved; once more if another was published meanwhile."""
        clock = asyncio.get_running_loop().time
        while True:
            await self._settled.wait()
            current, began = self._current, clock()
            assert current is not None, "it is settled only while there is a version to serve"
            await within(self._bring_to(member, current), self._deadline_s, f"publishing to {member.name}")
            if self._current is current and self._settled.is_set():
                return
            if await self._goes_along(member, patience_s=2 * (clock() - began)):
                return

    async def _goes_along(self, member: Member, patience_s: float) -> bool:
        """Whether a publish that began in this time took the member along; if none does, it has time to try again."""
        admitted = asyncio.get_running_loop().create_future()
        self._overtaken[member.name] = (member, admitted)
        await asyncio.wait({admitted}, timeout=patience_s)
        if self._overtaken.pop(member.name, None) is not None:
            return False
        # As long as the publish may take in all: loading, proof, admission.
        await within(admitted, 3 * self._deadline_s, f"publishing to {member.name}")
        return True

    async def _bring_to(self, member: Member, current: Current) -> None:
        handle = member.handle
        lacks = member.version != current.version.number  # one that rested may hold it
        if lacks and current.buckets:
            await handle.begin_publish(current.version.number)
            await asyncio.gather(*(handle.receive(bucket) for bucket in current.buckets))
            await handle.finish_publish(current.version)
        elif lacks:
            await handle.adopt(current.version)
        proof = current.proof
        if proof is not None and (wrong := proof.judge(await handle.probe(proof.recorded))) is not None:
            raise RunFailed(f"{member.name} {wrong}")
        if lacks and current.buckets:
            await handle.admit(current.version)
        member.version = current.version.number

    def adopt(self, version: PolicyVersion) -> None:
        """What engines load from disk is `version`: the first that joiners take."""
        self._current = Current(version, (), None)
        self._settled.set()

    def calibrated(self, recorded: Ref, judge: Judge) -> None:
        """From now on a joiner must compute as the learner did for these recorded samples."""
        assert self._current is not None, "workers start on an adopted version, and only then record samples"
        self._current = replace(self._current, proof=Proof(recorded, judge))

    @property
    def publishing(self) -> bool:
        return bool(self._publishing)

    async def sleep(self) -> None:
        """Let every healthy member give up its memory until the next publish."""
        await self.surviving({m: m.handle.sleep() for m in self._healthy()}, "putting to sleep")

    def begin_publish(self, number: int) -> tuple[tuple[str, ...], bool]:
        """Start the next version on every healthy member; from here to `admit` they hold none. (who they are, whether
        they are linked to each other already)."""
        self._settled.clear()
        if self.takes_along:
            self._along |= self._overtaken  # those of a publish that is begun again too
            self._overtaken = {}
        self._along = {name: each for name, each in self._along.items() if each[0].state in COME}
        members = [*self._healthy(), *(member for member, _ in self._along.values())]
        self._publishing = [(m, [self._spawn(m.handle.begin_publish(number))]) for m in members]
        names = tuple(member.name for member, _ in self._publishing)
        return names, names == self._linked

    def connect(self, link: Link) -> None:
        """Let those of the publish join the sender's group, in their order."""
        self._linked = tuple(member.name for member, _ in self._publishing)
        for rank, (member, calls) in enumerate(self._publishing, start=1):
            calls.append(self._spawn(member.handle.connect(replace(link, rank=rank))))

    async def may_leave(self) -> None:
        """Returns when no publish is under way: its members come through it together."""
        if self._publishing:
            await self._settled.wait()

    def failed(self) -> str | None:
        """What went wrong first at a member of the publish under way; None if nothing has."""
        return next((f"{member.name}: {error}" for member, error in self._failures()), None)

    def lose_failed(self) -> list[str]:
        """Lose members of the publish under way whose worker is gone; their names."""
        gone = [(member, error) for member, error in self._failures() if isinstance(error, WorkerLost)]
        for member, error in gone:
            self._lose(member, f"it died at a publish ({error})")
        return [member.name for member, _ in gone]

    def _failures(self) -> Iterator[tuple[Member, BaseException]]:
        for member, calls in self._publishing:
            ended = (call for call in calls if call.done() and not call.cancelled())
            if (error := next((e for call in ended if (e := call.exception()) is not None), None)) is not None:
                yield member, error

    def unanswered(self) -> list[str]:
        """Members of the publish under way with a call that has not come to its end."""
        return [member.name for member, calls in self._publishing if not all(call.done() for call in calls)]

    def receive(self, bucket: Ref) -> None:
        for member, calls in self._publishing:
            calls.append(self._spawn(member.handle.receive(bucket)))

    async def finish_publish(self, version: PolicyVersion) -> None:
        """Returns when each that is left has proved that it holds the version."""

        async def finish(member: Member, calls: Sequence[asyncio.Task[Any]]) -> None:
            await asyncio.gather(*calls, member.handle.finish_publish(version))

        await self._each(finish, f"publishing version {version.number}")

    async def probe(self, recorded: Ref) -> dict[str, np.ndarray]:
        """By name, the log-probs of recorded samples: of those that a publish is under way to, else of the healthy."""
        members = self._members() if self._publishing else self._healthy()
        found = await self.surviving({m: m.handle.probe(recorded) for m in members}, "probing the engines")
        return {member.name: logprobs for member, logprobs in found.items()}

    def expel(self, name: str, why: str) -> None:
        """Lose a member of the publish under way."""
        for member in self._members():
            if member.name == name:
                self._lose(member, why)

    async def admit(self, current: Current) -> None:
        """Let them take traffic at the new version, and joiners take it."""

        async def admit(member: Member, _: object) -> None:
            await member.handle.admit(current.version)
            member.version = current.version.number

        await self._each(admit, f"admitting version {current.version.number}")
        self._publishing = []
        self._current = current
        for member, admitted in self._along.values():
            if not admitted.done() and not member.gone:
                admitted.set_result(None)
        self._along = {}
        self._settled.set()

    def forget(self, member: Member) -> None:
        """It is lost: who waits for its admission hears so."""
        _, admitted = self._along.pop(member.name, (member, None))
        if admitted is not None and not admitted.done():
            admitted.set_exception(WorkerLost("it was given up"))

    def unlink(self) -> None:
        """The group that weights came through is gone."""
        self._linked = ()

    def _members(self) -> list[Member]:
        """Of the publish under way, those that are left."""
        return [member for member, _ in self._publishing if not member.gone]

    async def _each(self, verb: Callable[[Member, list], Any], what: str) -> None:
        """The verb for every member of the publish that is left."""
        await self.surviving({m: verb(m, calls) for m, calls in self._publishing if not m.gone}, what)

    async def surviving(self, answers: Mapping[Member, Awaitable[T]], what: str) -> dict[Member, T]:
        """The answers of those that gave one; the others are lost. RunFailed with the first one's words when all that
        live refuse: then it is not the worker."""
        calls = {member: asyncio.ensure_future(answer) for member, answer in answers.items()}
        if calls:
            await asyncio.wait(calls.values(), timeout=self._deadline_s)
        refused: dict[Member, str] = {}
        found: dict[Member, T] = {}
        for member, call in calls.items():
            if not call.done():
                call.cancel()
                self._lose(member, f"{what}: no answer within {self._deadline_s:g} s")
            elif isinstance(error := call.exception(), WorkerError):
                refused[member] = f"{what} ({member.name}): {error}"
            elif isinstance(error, WorkerLost):
                self._lose(member, f"{what}: it died ({error})")
            elif error is not None:
                raise error
            else:
                found[member] = call.result()
        if refused and not found:
            raise RunFailed(next(iter(refused.values())))
        for member, words in refused.items():
            self._lose(member, words)
        return found


async def within(answer: Awaitable[Any], timeout_s: float, what: str) -> Any:
    """RunFailed, naming `what`, when a worker is lost, fails, or does not answer in time."""
    try:
        return await asyncio.wait_for(answer, timeout_s)
    except TimeoutError as error:
        raise RunFailed(f"{what}: no answer within {timeout_s:g} s") from error
    except WorkerLost as error:
        raise RunFailed(f"{what}: the worker died ({error})") from error
    except WorkerError as error:
        raise RunFailed(f"{what}: {error}") from error
