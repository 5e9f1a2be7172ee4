"""Waiting for workers: every wait has a number of seconds, and a worker that died or timed out is one sentence.

In: Ray references. Out: their values, or RunFailed naming what was waited for. Left out: who is called (learner.py,
rollout.py, scorer.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, ObjectLostError, RayActorError, RayError, RayTaskError

from cluster.config.placement import RolePlan, process_environment
from cluster.errors import NoAnswer, RunFailed, StepLost
from cluster.experience.columns import Ref
from cluster.workers.lease import lifetime


def get(refs: Any, timeout_s: float, what: str) -> Any:
    """Wait for results; RunFailed naming `what`: NoAnswer when a worker died or the time is up,
    StepLost when a value is gone with its node."""
    try:
        return ray.get(refs, timeout=timeout_s)
    except GetTimeoutError as error:
        raise NoAnswer(f"{what}: no answer within {timeout_s:g} s") from error
    except RayActorError as error:
        raise NoAnswer(f"{what}: the worker died ({first_line(error)})") from error
    except ObjectLostError as error:
        raise StepLost(f"{what}: samples or scores were lost with their node ({first_line(error)})") from error
    except RayTaskError as error:
        raise RunFailed(f"{what}: {type(error.cause).__name__}: {error.cause}") from error
    except RayError as error:  # ended by Ray for its memory, never placed, ...
        raise NoAnswer(f"{what}: {first_line(error)}") from error


def put(value: Any) -> Ref:
    return ray.put(value)


def first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def options(role: RolePlan, name: str) -> dict[str, Any]:
    env = process_environment(role, name)
    return {
        "num_cpus": role.cpus,
        "num_gpus": role.gpus,
        "runtime_env": {"env_vars": env},
        "name": name,
        **lifetime(),
    }


def stop(actors: Sequence[Any]) -> None:
    for actor in actors:
        ray.kill(actor)
