"""A learner group whose one rank lives in this process: the same group and the same rank, without the actor between.

In: what LearnerGroup takes. Out: its verbs; values still go through Ray's object store. For tests of many variants of
one method, whose actors would take ten times as long to start as to learn. Left out: streams of weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray

from cluster.config.placement import RolePlan
from cluster.roles.learner import LearnerRole
from cluster.roles.learner_models import LearnerSpec
from cluster.workers.learner import LearnerGroup
from learners.engines.process_group import destroy_process_group


class LocalLearnerGroup(LearnerGroup):
    def __init__(self, role: RolePlan, spec: LearnerSpec, timeout_s: float) -> None:
        self._ranks = [_Rank(LearnerRole(spec, 0, 1))]
        self._timeout_s = timeout_s
        self.found = False

    def close(self) -> None:
        destroy_process_group()


class _Rank:
    def __init__(self, role: LearnerRole) -> None:
        self._role = role

    def __getattr__(self, name: str) -> _Call:
        return _Call(getattr(self._role, name))


class _Call:
    def __init__(self, method: Callable[..., Any]) -> None:
        self._method = method

    def remote(self, *arguments: Any) -> ray.ObjectRef:
        given = [ray.get(each) if isinstance(each, ray.ObjectRef) else each for each in arguments]
        return ray.put(self._method(*given))
