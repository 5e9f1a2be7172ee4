"""The rollout pool as the driver's thread uses it: plain calls, each with a deadline, over an event loop in a thread.

In: prompts, versions, a number of workers. Out: `Samples`. The loop's thread goes on while the driver waits for a
learner: work is given out, workers join and leave. Only this thread touches the members; calls from the driver are
posted to it. Left out: what happens there (core.py).
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from types import MappingProxyType
from typing import Any, TypeVar

from actors.rollouts.spans import Span
from actors.transports.interface import Link
from actors.types import PolicyVersion, Prompt, SamplingSettings
from cluster.errors import RunFailed, UserError
from cluster.experience.columns import Ref, Samples
from cluster.pool.core import Core
from cluster.pool.members.handle import RolloutHandle, WorkerPulse
from cluster.pool.members.recovery import RecoveryLimits
from cluster.pool.members.roster import Deadlines
from cluster.pool.members.ticket import Finished, Ticket
from cluster.pool.members.weights import Current, Judge, Proof

T = TypeVar("T")


class RolloutPool:
    """start: makes the handle of a new worker. put: a reference of what workers are to fetch. sequences: that an engine
    runs at once. tell: hears (kind, text) of what happens to workers, on the pool's thread. refuse: why the cluster has
    no room for so many more, or None; asked when the pool is scaled. resized: hears how many workers there are to be
    from then on, and 0 at the end. takes_along: whether a joiner that a publish overtook may take the next. inherited:
    workers that an earlier driver left, by name, on whatever weights."""

    def __init__(
        self,
        start: Callable[[str], RolloutHandle],
        count: int,
        *,
        put: Callable[[Any], Ref],
        sequences: int,
        deadlines: Deadlines,
        limits: RecoveryLimits | None = None,
        tell: Callable[[str, str], None] = lambda kind, text: None,
        refuse: Callable[[int], str | None] = lambda more: None,
        resized: Callable[[int], None] = lambda count: None,
        takes_along: bool = True,
        inherited: Mapping[str, RolloutHandle] = MappingProxyType({}),
    ) -> None:
        self._put = put
        self._resized = resized
        self._refuse = refuse
        self._deadlines = deadlines
        self._tickets = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rollout-pool", daemon=True)
        self._thread.start()
        self._core = Core(
            start,
            sequences=sequences,
            deadlines=deadlines,
            limits=limits or RecoveryLimits(),
            tell=tell,
            left=resized,
        )
        self._members = self._core.members
        self._core.weights.takes_along = takes_along
        self.inherits = bool(inherited)
        self._starting = self._soon(
            lambda: self._members.inherit(inherited, count) if inherited else self._members.add(count)
        )
        self._closed = False
        self._scaling = threading.Lock()

    # --- membership ---

    def __len__(self) -> int:
        """Workers that serve or will."""
        return self._soon(lambda: self._members.count)

    def members(self) -> list[tuple[str, str, int | None]]:
        """(name, state, version) of every worker there ever was, in order."""
        return self._soon(lambda: [(m.name, m.state.value, m.version) for m in self._members.by_name.values()])

    def take_spans(self) -> dict[str, list[Span]]:
        """What every worker did since the last call, by name."""
        return self._soon(self._core.take_spans)

    def ready_at(self) -> dict[str, float]:
        """When each worker's engine ran, on the clock of time.monotonic."""
        members = self._soon(lambda: list(self._members.by_name.values()))
        return {m.name: m.engine_at for m in members if m.engine_at is not None}

    def pulses(self) -> dict[str, WorkerPulse]:
        """How every healthy worker is doing."""
        return self._ask(self._core.pulses(), "asking the workers")

    def scale(self, count: int) -> str:
        """Make it so many workers, and say what was done. Nothing waits: joiners take work when they have proved the
        present weights, leavers hand on theirs. UserError with the reason for a number that cannot be."""
        if count < 1:
            raise UserError(f"a pool needs at least one worker, got {count}")
        with self._scaling:  # people and the autoscaler may both ask
            more = count - len(self)
            if more == 0:
                return f"there are {count} already"
            if more > 0 and (wrong := self._refuse(more)) is not None:
                raise UserError(wrong)
            self._soon(lambda: self._members.add(more) if more > 0 else self._members.remove(-more))
            self._resized(count)
        if more > 0:
            return f"{more} more {'worker' if more == 1 else 'workers'} on the way to {count}"
        return f"{-more} {'worker leaves' if more == -1 else 'workers leave'}, {count} stay"

    # --- generating ---

    def generate(
        self, prompts: Sequence[Prompt], sampling: SamplingSettings, version: int, recorded: int = 0
    ) -> Samples:
        """Samples for all prompts, stamped with `version`. Prompts are divided by index among as many workers as there
        are to be, one that is lost and not yet replaced too, one that rests not: which worker makes a sample never
        depends on timing while none comes, goes or is slow, and the order of the samples not at all."""
        names, count = self._soon(lambda: ([m.name for m in self._members.healthy], self._members.sharing))
        count = max(count, len(names), 1)
        parts = [prompts[i::count] for i in range(count) if prompts[i::count]]
        tickets = [
            self.ticket(part, sampling, version=version, recorded=recorded, prefer=names[i] if i < len(names) else None)
            for i, part in enumerate(parts)
        ]
        return samples_of(self.wait([self.offer(ticket) for ticket in tickets]))

    def ticket(self, prompts: Sequence[Prompt], sampling: SamplingSettings, **fields: Any) -> Ticket:
        self._tickets += 1
        groups = tuple(prompt.group for prompt in prompts)
        return Ticket(self._tickets, self._put(list(prompts)), groups, sampling, **fields)

    def offer(self, ticket: Ticket) -> Future[Finished]:
        """Queue a ticket for whoever has room; its future ends when all its samples are whole."""

        async def end() -> Finished:
            return await self._core.offer(ticket)

        return asyncio.run_coroutine_threadsafe(end(), self._loop)

    def hold(self) -> None:
        """Stop every generation where it stands; its tickets wait for `go_on` with the tokens already made."""
        self._ask(self._core.hold(), "stopping the generation")

    def go_on(self) -> None:
        """Give out work again."""
        self._soon(self._core.go_on)

    def forget(self) -> None:
        """Drop every ticket, given out or not; who waits for one is cancelled."""
        self._ask(self._core.forget(), "stopping the generation")

    def wait(self, ends: Sequence[Future[Finished]]) -> list[Finished]:
        """All of these tickets, in their order."""
        return [end.result() for end in ends]  # the core gives every ticket its deadline

    # --- weights ---

    def adopt(self, version: PolicyVersion) -> None:
        """Wait until every engine of the start runs; their weights, fresh from disk, are `version`."""
        self._soon(lambda: self._core.weights.adopt(version))

        async def joined() -> None:
            await asyncio.gather(*self._starting)

        self._ask(joined(), "starting the rollout workers", self._deadlines.start_s)
        self._soon(self._members.spares.keep)

    def take_over(self) -> None:
        """Wait until the workers that an earlier driver left have answered; the next publish is to be theirs too. Who
        is started in the place of others joins after it."""

        async def answered() -> None:
            await asyncio.gather(*self._starting)

        if self.inherits:
            self._ask(answered(), "taking over the rollout workers")
        self._soon(self._members.spares.keep)

    def calibrated(self, recorded: Ref, judge: Judge) -> None:
        """What a joiner's log-probs of the recorded samples are judged by."""
        self._soon(lambda: self._core.weights.calibrated(recorded, judge))

    def sleep(self) -> None:
        """Returns when every engine has given up its memory, until the next publish; nothing may be under way."""
        self._ask(self._core.weights.sleep(), "putting the engines to sleep")

    def begin_publish(self, number: int) -> tuple[tuple[str, ...], bool]:
        """From here until `admit` the engines hold no version. Nothing waits: failures show at the end. (the workers
        that the publish goes to, whether they are linked already)."""
        return self._soon(lambda: self._core.weights.begin_publish(number))

    def connect(self, link: Link) -> None:
        """Let the workers of the publish join the group that weights come through."""
        self._soon(lambda: self._core.weights.connect(link))

    def receive(self, parcel: Ref) -> None:
        """Hand every engine one bucket; they load it while the learner makes the next."""
        self._soon(lambda: self._core.weights.receive(parcel))

    def watch_publish(self) -> None:
        """RunFailed as soon as a worker has failed at the publish under way."""
        if (wrong := self._soon(self._core.weights.failed)) is not None:
            raise RunFailed(f"publishing: {wrong}")

    def lose_failed(self) -> list[str]:
        """Lose the workers that died at the publish under way; their names."""
        return self._soon(self._core.weights.lose_failed)

    def expel(self, name: str, why: str) -> None:
        """Lose a worker of the publish under way."""
        self._soon(lambda: self._core.weights.expel(name, why))

    def unanswered(self) -> list[str]:
        """Workers that have not done yet what the publish under way asked of them."""
        return self._soon(self._core.weights.unanswered)

    def finish_publish(self, version: PolicyVersion) -> None:
        """Returns when each engine has proved that it holds `version.digest`."""
        self._ask(self._core.weights.finish_publish(version), "publishing")

    def probe(self, recorded: Ref) -> dict[str, Any]:
        """Each engine's log-probs of recorded samples, by name."""
        return self._ask(self._core.weights.probe(recorded), "probing")

    def admit(self, version: PolicyVersion, buckets: Sequence[Ref], recorded: Ref | None, judge: Judge) -> None:
        """Let the engines take traffic at `version`; who joins later takes these buckets and is judged so, where there
        are `recorded` samples."""
        current = Current(version, tuple(buckets), None if recorded is None else Proof(recorded, judge))
        self._ask(self._core.weights.admit(current), "admitting")

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            self._ask(self._finish(), "closing the pool")
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            self._resized(0)

    # --- the loop's thread ---

    async def _finish(self) -> None:
        """End the workers, and whatever still waits for them: it is cancelled, and has nobody left to tell."""
        await self._core.close()
        waiting = asyncio.all_tasks() - {asyncio.current_task()}
        for task in waiting:
            task.cancel()
        if waiting:
            await asyncio.wait(waiting)

    def _soon(self, verb: Callable[[], T]) -> T:
        """Run `verb` on the loop and wait for it: an instant."""

        async def run() -> T:
            return verb()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result()

    def _ask(self, coroutine: Coroutine[Any, Any, T], what: str, timeout_s: float | None = None) -> T:
        """Wait for a coroutine whose parts have deadlines of their own; the margin is for a loop that is stuck."""
        wait_s = max(self._deadlines.weights_s, timeout_s or 0.0) * 2 + 60.0
        try:
            return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(wait_s)
        except TimeoutError as error:
            raise RunFailed(f"{what}: the pool gave no answer within {wait_s:g} s") from error


def samples_of(finished: Sequence[Finished]) -> Samples:
    """The tickets end to end."""
    return Samples(
        chunks=tuple(f.batch for f in finished),
        prompts=tuple(f.ticket.prompts for f in finished),
        groups=tuple(group for f in finished for group in f.ticket.groups),
        samples_per_prompt=finished[0].ticket.sampling.samples_per_prompt,
        recorded=finished[0].recorded,
        stats=tuple(f.stats for f in finished),
    )
