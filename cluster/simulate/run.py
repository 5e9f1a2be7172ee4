"""A discrete-event twin of the driver: the real Dispatcher, Backlog and Autoscaler, simulated workers and learner.

In: a Scenario (counts, time distributions). Out: a Forecast: step times, where the learner's time went, what the pool
did. Events are ends of sequences, of updates, of engine starts. A schedule is its bound: 0 is synchronous; with
`settle` a publish waits until nothing is under way (one step off). The driver takes, scores, learns and publishes in
turns, as the loops' pages do. Left out: faults, the network.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from actors.types import SamplingSettings
from cluster.pool.admission import Admission, Backlog
from cluster.pool.autoscale import Autoscaler, AutoscaleSettings, StepLoad
from cluster.pool.dispatch import Dispatcher
from cluster.pool.members.ticket import Ticket
from cluster.simulate.worker import SimulatedWorker, StepTime

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Scenario:
    """lengths: tokens of each sample of a group, by its number. learn_s: seconds from a batch's tokens to updated
    weights. publish_s: in which no worker decodes and the learner does not learn. sequences: that a worker runs at
    once. score_s: from the last token to a score; where samples wait in a stream, from a batch to its scores. start_s:
    of an engine that joins."""

    workers: int
    batch: int
    samples: int
    steps: int
    step: StepTime
    lengths: Callable[[int], list[int]]
    learn_s: Callable[[int], float]
    publish_s: float = 0.0
    score_s: float = 0.0
    max_staleness: int = 0
    settle: bool = False
    sequences: int = 64
    max_tokens: int = 1024
    start_s: float = 20.0
    autoscale: AutoscaleSettings | None = None


@dataclass(slots=True)
class Forecast:
    """seconds: of the whole run. learner_idle: the share of it, from the first batch on, in which the learner waited.
    driver_s: real seconds that the driver's code took, `samples` in all. workers: their number at each step."""

    seconds: float = 0.0
    step_s: list[float] = field(default_factory=list)
    learner_idle: float = 0.0
    decoding: float = 0.0
    samples: int = 0
    tokens: int = 0
    staleness: list[int] = field(default_factory=list)
    workers: list[int] = field(default_factory=list)
    driver_s: float = 0.0


def simulate(scenario: Scenario) -> Forecast:
    return _Simulation(scenario).run()


class _Simulation:
    def __init__(self, scenario: Scenario) -> None:
        self.s = scenario
        self.now = 0.0
        self.events: list[tuple[float, int, str, object]] = []
        self.numbers = itertools.count()
        self.dispatcher = Dispatcher(scenario.sequences)
        self.backlog = Backlog(Admission(scenario.batch, scenario.max_staleness))
        self.workers: dict[str, SimulatedWorker] = {}
        self.stamps: dict[str, int] = {}
        self.sampling = SamplingSettings(max_tokens=scenario.max_tokens, samples_per_prompt=scenario.samples)
        self.at: dict[int, tuple[Ticket, str]] = {}
        """Of each ticket under way: who has it."""
        self.lacking: dict[int, int] = {}
        self.left: dict[int, list[int]] = {}
        self.born: dict[int, int] = {}
        self.size: dict[int, int] = {}
        self.version = self.admitted = self.named = 0
        self.wanted = scenario.workers
        self.learning: list[int] | None = None
        self.publishing: list[int] | None = None
        """Groups that were learned and whose version is not published yet."""
        self.published_at = 0.0
        self.busy_s = self.step_began = self.last_busy = self.decoded_before = 0.0
        self.found = Forecast()
        self.scaler = Autoscaler(scenario.autoscale, lambda: self.now) if scenario.autoscale else None

    def run(self) -> Forecast:
        for _ in range(self.s.workers):
            self._join(self._name())
        self._admit()
        while self.version < self.s.steps:
            self.now, _, kind, what = heapq.heappop(self.events)
            getattr(self, f"_on_{kind}")(what)
        found = self.found
        found.seconds, found.learner_idle = self.now, max(0.0, 1.0 - self.busy_s / self.now)
        found.decoding += sum(worker.busy_s for worker in self.workers.values())
        found.tokens += sum(worker.tokens for worker in self.workers.values())
        return found

    # --- events ---

    def _on_end(self, event: tuple[str, int]) -> None:
        name, stamp = event
        if self.stamps.get(name) == stamp:
            self._touch(name)
            self._dispatch()

    def _on_scored(self, group: int) -> None:
        self._driver(self.backlog.end, group)
        if self.publishing is not None:
            self._publish(self.publishing)
        self._learn()

    def _on_learned(self, groups: list[int]) -> None:
        self.publishing = groups
        self._publish(groups)

    def _on_published(self, _: object) -> None:
        self._learn()

    def _on_started(self, name: str) -> None:
        if len(self.workers) < self.wanted:
            self._join(name)
            self._dispatch()

    # --- what the driver does ---

    def _admit(self) -> None:
        version = min(self.version, self.s.steps - 1 - self.s.max_staleness)
        room = self._driver(lambda: self.backlog.rule.room(version=version, admitted=self.admitted, dropped=0))
        for group in range(self.admitted, self.admitted + room):
            self.born[group] = self.version
            self._driver(self.backlog.admit, group, self.version)
            self._driver(self.dispatcher.offer, Ticket(group, None, (group,), self.sampling))
        self.admitted += room
        self._dispatch()

    def _dispatch(self) -> None:
        while assigned := self._driver(lambda: list(self.dispatcher.assign())):
            for name, ticket in assigned:
                self._touch(name)
                lengths = self.left.pop(ticket.number, None) or self.s.lengths(ticket.groups[0])
                self.at[ticket.number] = (ticket, name)
                self.lacking[ticket.number] = len(lengths)
                self.size.setdefault(ticket.groups[0], sum(lengths))
                self.workers[name].add(self.now, ticket.number, lengths)
                self._reckon(name)

    def _touch(self, name: str) -> None:
        """Bring a worker to the present, and hear of what has ended there."""
        for number in self.workers[name].advance(self.now):
            self.lacking[number] -= 1
            if not self.lacking[number]:
                del self.lacking[number]
                ticket, _ = self.at.pop(number)
                self._driver(self.dispatcher.done, name, ticket)
                self._later(0.0 if self.s.max_staleness else self.s.score_s, "scored", ticket.groups[0])
        self._reckon(name)

    def _learn(self) -> None:
        if self.learning is not None or self.now < self.published_at:
            return
        self.learning = self._driver(self.backlog.take, self.version, self.s.batch)
        if self.learning is not None:
            self.found.staleness.append(max(self.version - self.born[group] for group in self.learning))
            self.last_busy = self.s.learn_s(sum(self.size[group] for group in self.learning))
            self.busy_s += self.last_busy
            # Where samples wait in a stream, a step has its own scored after it took them.
            self._later((self.s.score_s if self.s.max_staleness else 0.0) + self.last_busy, "learned", self.learning)

    def _publish(self, groups: Sequence[int]) -> None:
        if self.s.settle and self.backlog.open:
            return
        self.publishing = None
        for name, worker in self.workers.items():
            self._touch(name)
            worker.stall(self.now, self.s.publish_s)
            self._reckon(name)
        for group in groups:
            del self.born[group], self.size[group]
        found, step_s = self.found, self.now - self.step_began
        found.samples += len(groups) * self.s.samples
        found.step_s.append(step_s)
        found.workers.append(len(self.workers))
        self.learning, self.step_began = None, self.now
        self.version += 1
        self._scale(step_s)
        self.published_at = self.now + self.s.publish_s
        if self.version < self.s.steps:
            self._later(self.s.publish_s, "published", None)
            self._admit()

    # --- members ---

    def _scale(self, step_s: float) -> None:
        decoded = sum(worker.busy_s for worker in self.workers.values())
        spent, self.decoded_before = decoded - self.decoded_before, decoded
        decision = self.scaler.decide(StepLoad(self.wanted, spent, self.last_busy, step_s)) if self.scaler else None
        if decision is None:
            return
        for _ in range(decision.workers - self.wanted):
            self._later(self.s.start_s, "started", self._name())
        for _ in range(len(self.workers) - decision.workers):  # those that still start are not missed
            self._leave(next(reversed(self.workers)))
        self.wanted = decision.workers

    def _join(self, name: str) -> None:
        self.workers[name] = SimulatedWorker(self.s.step, at=self.now)
        self.stamps[name] = 0
        self.dispatcher.join(name)

    def _leave(self, name: str) -> None:
        self._touch(name)
        worker = self.workers.pop(name)
        del self.stamps[name]
        self.left |= worker.take_back()
        self.found.decoding += worker.busy_s
        self.found.tokens += worker.tokens
        self.decoded_before -= worker.busy_s
        for ticket in self._driver(self.dispatcher.leave, name):
            self._driver(lambda ticket=ticket: self.dispatcher.offer(ticket, first=True))
        self._dispatch()

    def _name(self) -> str:
        self.named += 1
        return f"rollout-{self.named - 1}"

    # --- time ---

    def _reckon(self, name: str) -> None:
        """The worker's next end, which any change of its work moves."""
        self.stamps[name] += 1
        end = self.workers[name].next_end()
        if end is not None:
            heapq.heappush(self.events, (end, next(self.numbers), "end", (name, self.stamps[name])))

    def _later(self, seconds: float, kind: str, what: object) -> None:
        heapq.heappush(self.events, (self.now + seconds, next(self.numbers), kind, what))

    def _driver(self, work: Callable[..., T], *arguments: object) -> T:
        """Do what the real driver would do, on a real clock."""
        began = time.perf_counter()
        done = work(*arguments)
        self.found.driver_s += time.perf_counter() - began
        return done
