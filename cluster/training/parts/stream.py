"""Generation that goes on while the learner learns: prompts admitted as far as staleness allows, taken as they end.

In: a job's pool, order and ledger. Out: a step's samples, the oldest first, none older than the bound. Who waits for
whom: `take` waits for the pool; the pool waits for nobody and runs dry when admission (cluster/pool/admission.py) stops
it, until the next `admit`. Example: bound 1, batches of 4: 8 prompts are under way, the step takes 4 of them, and after
it 4 more are sent while the others go on. Left out: the order of a step (cluster/one_step_off.py,
cluster/asynchronous.py), what a member of the pool does.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from actors.types import Prompt, SamplingSettings
from cluster.errors import RunFailed
from cluster.pool.admission import Admission, Backlog
from cluster.pool.members.ticket import Finished
from cluster.pool.pool import RolloutPool


class Stream:
    """next_prompts: (version, count) -> the next prompts of the order, admitted in the ledger. drop: (groups, reason)
    for those that no step can train in time."""

    def __init__(
        self,
        pool: RolloutPool,
        rule: Admission,
        sampling: SamplingSettings,
        *,
        next_prompts: Callable[[int, int], Sequence[Prompt]],
        drop: Callable[[Sequence[int], str], None],
        recorded: int,
        timeout_s: float,
    ) -> None:
        self._pool = pool
        self._rule = rule
        self._sampling = sampling
        self._next_prompts = next_prompts
        self._drop = drop
        self._recorded = recorded
        self._timeout_s = timeout_s
        self._backlog = Backlog(rule)
        self._tickets: dict[int, Finished] = {}
        self._lengths: dict[int, float] = {}
        self._news: queue.SimpleQueue[Future[Finished]] = queue.SimpleQueue()

    @property
    def under_way(self) -> int:
        """Prompts that are being generated, or wait for a worker."""
        return self._backlog.open

    def admit(self, *, version: int, in_flight: int, flat: int, steps: int) -> None:
        """Send as many prompts to the pool as their samples can still be in time, and none that a run of so many steps
        has no step left for. in_flight: prompts that no step has trained or dropped yet, those in the running step's
        batch too, of which `flat` are to be replaced. A step has used the places of its batch, whether it trained them
        all or not: a prompt that it took and dropped has no other in its stead."""
        admitted = version * self._rule.batch + in_flight
        room = self._rule.room(version=version, admitted=admitted, dropped=flat)
        room = min(room, steps * self._rule.batch - (admitted - flat))
        if room > 0:
            self.send(version, self._next_prompts(version, room))

    def send(self, version: int, prompts: Sequence[Prompt]) -> None:
        """A ticket a prompt: each goes to whoever has the least before it, and ends by itself."""
        for prompt in prompts:
            self._backlog.admit(prompt.group, version)
            ticket = self._pool.ticket([prompt], self._sampling, recorded=self._recorded)
            self._pool.offer(ticket).add_done_callback(self._news.put)

    def take(self, version: int, count: int) -> list[Finished]:
        """Wait for so many prompts' samples, and take the oldest."""
        self._hear(block=False)
        while (chosen := self._choose(version, count)) is None:
            self._hear(block=True)
        return [self._tickets.pop(group) for group in chosen]

    def take_lengths(self) -> dict[int, float]:
        """Mean response tokens of each prompt that ended since the last call, by group."""
        taken, self._lengths = self._lengths, {}
        return taken

    def settle(self) -> None:
        """Wait until nothing is under way: what is being generated ends under the weights that it began with."""
        while self._backlog.open:
            self._hear(block=True)

    def _choose(self, version: int, count: int) -> list[int] | None:
        backlog = self._backlog
        chosen = backlog.take(version, count)
        if chosen is not None or backlog.open:
            return chosen
        # Nothing more will end by itself: steps that trained fewer prompts than they admitted left too many behind.
        late = backlog.take_late(version)
        for group in late:
            del self._tickets[group]
        self._drop(late, "stale")
        if backlog.ended < count:
            raise RunFailed(
                f"{backlog.ended} prompts are ready, the step needs {count} and no more may be admitted; raise "
                "rollout.schedule.max_staleness"
            )
        return backlog.take_oldest(count)

    def _hear(self, block: bool) -> None:
        """What has ended since the last look; with block, at least one that does."""
        while block or not self._news.empty():
            try:
                finished = self._news.get(timeout=self._timeout_s).result()
            except queue.Empty as error:
                raise RunFailed(f"generating: no prompt's samples ended within {self._timeout_s:g} s") from error
            for group in finished.ticket.groups:
                self._backlog.end(group)
                self._tickets[group] = finished
                self._lengths[group] = finished.stats.length_mean
            block = False
