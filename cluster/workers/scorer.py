"""The scorers as the driver calls them: reward functions out of process, reward models, judges.

In: samples by reference. Out: references of scores and of reports. Scoring changes nothing, so Ray may do it again: it
starts a scorer that died once more and repeats its calls; one that does not answer in time is ended here, to the same
effect. Left out: what a scorer does (roles/scorer.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray

from cluster.columns import Ref, Samples
from cluster.errors import RunFailed
from cluster.placement import RolePlan
from cluster.roles.scorer import ScorerRole, ScorerSpec
from cluster.workers.calls import get, options, stop
from cluster.workers.lease import leased, living


class ScorerPool:
    """timeout_s: the longest that scoring may take. failures: times that each scorer may be started again."""

    def __init__(self, role: RolePlan, spec: ScorerSpec, timeout_s: float, failures: int = 0) -> None:
        actor = ray.remote(leased(ScorerRole))
        again = {"max_restarts": failures, "max_task_retries": failures}
        found = living("scorer")  # of an earlier driver; to score leaves no trace in them
        names = [f"scorer-{i}" for i in range(role.count)]
        self._actors = [found.get(n) or actor.options(**options(role, n), **again).remote(spec) for n in names]
        self._timeout_s = timeout_s
        self._failures = failures
        self._busy: dict[str, int] = {}
        """Who does each call, by its task, until it was waited for."""

    def score(self, samples: Samples) -> list[tuple[Ref, Ref]]:
        """(scores, stats) references, one pair a chunk."""
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
            _, late = ray.wait(refs, num_returns=len(refs), timeout=self._timeout_s, fetch_local=False)
            if not late:
                break
            if tries == self._failures:
                raise RunFailed(f"scoring: no answer within {self._timeout_s:g} s, {tries + 1} times")
            for scorer in {self._busy[_task(ref)] for ref in late}:
                ray.kill(self._actors[scorer], no_restart=False)
        found = get(refs, self._timeout_s, "scoring")
        for ref in refs:
            self._busy.pop(_task(ref), None)
        return found

    def close(self) -> None:
        stop(self._actors)


def _task(ref: Ref) -> str:
    return ref.task_id().hex()
