"""The scorers as the driver calls them: reward functions out of process, reward models, judges.

In: samples by reference. Out: references of scores and of reports. Scoring changes nothing, so Ray may do it again: it
starts a scorer that died once more and repeats its calls; one that does not answer in time is ended here, to the same
effect. Ray tells nobody of it: a call that lasts as long as the scorer's process does. Left out: what a scorer does
(cluster/roles/scorer.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import RayError

from cluster.config.placement import RolePlan
from cluster.errors import RunFailed
from cluster.experience.columns import Ref, Samples
from cluster.roles.scorer import ScorerRole, ScorerSpec
from cluster.workers.calls import first_line, get, options, stop
from cluster.workers.lease import leased, living

WATCH = "watch"
"""Ray's concurrency group of the calls that only last: the scorer scores beside them."""


class ScorerPool:
    """timeout_s: the longest that scoring may take. failures: times that each scorer may be started again. tell: what
    happened, as the kind of an event and a sentence."""

    heard: Callable[[str], None] = staticmethod(lambda what: None)
    """Hears of every wait of a step as it begins: each has a deadline of its own."""

    def __init__(
        self,
        role: RolePlan,
        spec: ScorerSpec,
        timeout_s: float,
        failures: int = 0,
        tell: Callable[[str, str], None] = lambda kind, text: None,
    ) -> None:
        actor: Any = ray.remote(concurrency_groups={WATCH: 2})(leased(ScorerRole))  # type: ignore[call-overload] # Ray's stubs lack it
        again = {"max_restarts": failures, "max_task_retries": failures}
        found = living("scorer")  # of an earlier driver; to score leaves no trace in them
        names = [f"scorer-{i}" for i in range(role.count)]
        self._actors = [found.get(n) or actor.options(**options(role, n), **again).remote(spec) for n in names]
        self._timeout_s = timeout_s
        self._failures = failures
        self._tell = tell
        self._names = names
        self._busy: dict[str, int] = {}
        """Who does each call, by its task, until it was waited for."""
        self._watches: dict[Ref, int] = {}
        """The calls that last as long as a scorer does."""

    def score(self, samples: Samples) -> list[tuple[Ref, Ref]]:
        """(scores, report) references, one pair a chunk."""
        self._watch()
        made = []
        for i, (chunk, prompts) in enumerate(zip(samples.chunks, samples.prompts, strict=True)):
            scorer = i % len(self._actors)
            scores, report = self._actors[scorer].score.options(num_returns=2).remote(chunk, prompts)
            self._busy[_task(scores)] = scorer
            made.append((scores, report))
        return made

    def wait(self, refs: Sequence[Ref]) -> list[Any]:
        """Their values. RunFailed when a scorer fails more often than it may."""
        refs = list(refs)
        for tries in range(self._failures + 1):
            self.heard("scoring")
            if not (late := self._late(refs)):
                break
            if tries == self._failures:
                raise RunFailed(f"scoring: no answer within {self._timeout_s:g} s, {tries + 1} times")
            for scorer in {self._busy[_task(ref)] for ref in late}:
                self._end(scorer)
        found = get(refs, self._timeout_s, "scoring")
        for ref in refs:
            self._busy.pop(_task(ref), None)
        return found

    def _watch(self) -> None:
        watched = set(self._watches.values())
        for i, actor in enumerate(self._actors):
            if i not in watched:
                self._watches[actor.outlast.options(concurrency_group=WATCH, max_task_retries=0).remote()] = i

    def _late(self, refs: Sequence[Ref]) -> list[Ref]:
        """Those that did not come in time; who died meanwhile is told."""
        deadline = time.monotonic() + self._timeout_s
        while True:
            left = max(0.0, deadline - time.monotonic())
            ready, _ = ray.wait([*refs, *self._watches], num_returns=len(refs), timeout=left, fetch_local=False)
            ended = [ref for ref in ready if ref in self._watches]
            for ref in ended:
                self._end_watch(ref)
            if not ended:
                came = set(ready)
                return [ref for ref in refs if ref not in came]

    def _end_watch(self, ref: Ref) -> None:
        name = self._names[self._watches.pop(ref)]
        try:
            ray.get(ref)
        except RayError as error:
            self._tell("lost", f"{name}: its process ended ({first_line(error)})")

    def _end(self, scorer: int) -> None:
        """One that hangs. Ray gives its process some seconds to end by itself."""
        self._watches = {ref: i for ref, i in self._watches.items() if i != scorer}  # it is told here, and once
        self._tell("lost", f"{self._names[scorer]}: no answer within {self._timeout_s:g} s; it is ended")
        ray.kill(self._actors[scorer], no_restart=False)

    def close(self) -> None:
        self._watches.clear()
        stop(self._actors)


def _task(ref: Ref) -> str:
    return ref.task_id().hex()
