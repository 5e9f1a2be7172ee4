"""The scorers as the driver calls them: reward functions out of process, reward models, judges.

In: samples by reference. Out: references of scores and of reports. Left out: what a scorer does (roles/scorer.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray

from cluster.columns import Ref, Samples
from cluster.placement import RolePlan
from cluster.roles.scorer import ScorerRole, ScorerSpec
from cluster.workers.calls import get, options, stop


class ScorerPool:
    """The scorers: reward functions out of process, reward models."""

    def __init__(self, role: RolePlan, spec: ScorerSpec, timeout_s: float) -> None:
        actor = ray.remote(ScorerRole)
        self._actors = [actor.options(**options(role, f"scorer-{i}")).remote(spec) for i in range(role.count)]
        self._timeout_s = timeout_s

    def score(self, samples: Samples) -> list[tuple[Ref, Ref]]:
        """(scores, stats) references, one pair a chunk."""
        return [
            self._actors[i % len(self._actors)].score.options(num_returns=2).remote(chunk, prompts)
            for i, (chunk, prompts) in enumerate(zip(samples.chunks, samples.prompts, strict=True))
        ]

    def wait(self, refs: Sequence[Ref]) -> list[Any]:
        return get(list(refs), self._timeout_s, "scoring")

    def close(self) -> None:
        stop(self._actors)
