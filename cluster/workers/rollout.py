"""Rollout workers as Ray actors, behind the pool's RolloutHandle.

In: a plan of what a worker takes, engine settings. Out: handles, one an actor. Each worker stands by itself, in a
placement group of its own where it takes GPUs, so that it can come and go alone. Left out: the pool (cluster/pool),
what a worker does (cluster/roles/rollout.py).
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import ray
from ray.exceptions import ObjectLostError, RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.engines.interface import EngineFailed
from actors.rollouts.generation import RolloutStats
from actors.transports.interface import Link
from actors.types import PolicyVersion
from cluster.config.placement import RolePlan
from cluster.experience.columns import Ref
from cluster.pool.members.handle import RolloutHandle, WorkerError, WorkerIdentity, WorkerLost, WorkerPulse
from cluster.pool.members.ticket import Ticket
from cluster.roles.rollout import RolloutRole, RolloutSpec
from cluster.workers.calls import first_line, options
from cluster.workers.groups import release, reserve
from cluster.workers.lease import leased, living

MANY = 10_000
"""Calls that a worker's event loop may have under way: tickets wait in its engine, never in Ray."""


def start_rollout(role: RolePlan, spec: RolloutSpec) -> Callable[[str], RolloutHandle]:
    """What starts one more worker, by name."""
    alone = role.gpus >= 1

    def start(name: str) -> RolloutHandle:
        given = options(role, name)
        if alone:
            release(name)  # of one of this name that died with its driver
            group = reserve(name, {"CPU": role.cpus, "GPU": role.gpus}, given.get("lifetime"))
            given["scheduling_strategy"] = PlacementGroupSchedulingStrategy(group)
        actor: Any = ray.remote(leased(RolloutRole)).options(max_concurrency=MANY, **given).remote(spec)
        return RayRollout(actor, name if alone else None)

    return start


def living_rollout(role: RolePlan) -> dict[str, RolloutHandle]:
    """Workers that an earlier driver left, by name; whether they answer shows when they are started."""
    alone = role.gpus >= 1
    return {name: RayRollout(actor, name if alone else None) for name, actor in living("rollout").items()}


class RayRollout:
    """One rollout worker's actor. group: the name of its placement group, where it has one."""

    def __init__(self, actor: Any, group: str | None) -> None:
        self._actor = actor
        self._group = group
        self._owner = uuid.uuid4().hex
        self._turn = 0

    async def start(self) -> WorkerIdentity:
        return await _answer(self._actor.own.remote(self._owner))

    async def generate(self, ticket: Ticket) -> tuple[Ref, Ref, RolloutStats]:
        batch, recorded, stats = self._actor.generate.options(num_returns=3).remote(
            self._owner, ticket.prompts, ticket.carried, ticket.sampling, ticket.version, ticket.recorded
        )
        return batch, recorded, await _answer(stats)

    async def interrupt(self) -> int:
        return await _answer(self._actor.interrupt.remote())

    async def adopt(self, version: PolicyVersion) -> None:
        await self._in_turn("adopt", version)

    async def sleep(self) -> None:
        await self._in_turn("sleep", None)

    async def begin_publish(self, number: int) -> None:
        await self._in_turn("begin_publish", number)

    async def connect(self, link: Link) -> None:
        await self._in_turn("connect", link)

    async def receive(self, parcel: Ref) -> None:
        await self._in_turn("receive", parcel)

    async def finish_publish(self, version: PolicyVersion) -> None:
        await self._in_turn("finish_publish", version)

    async def probe(self, batch: Ref) -> np.ndarray:
        return await self._in_turn("probe", batch)

    async def admit(self, version: PolicyVersion) -> None:
        await self._in_turn("admit", version)

    async def pulse(self) -> WorkerPulse:
        return await _answer(self._actor.pulse.remote())

    async def stop(self) -> None:
        ray.kill(self._actor)
        if self._group is not None:
            release(self._group)

    def _in_turn(self, verb: str, argument: Any) -> Awaitable[Any]:
        """Numbered here, when it is called: Ray runs the calls of an asynchronous actor in any order."""
        turn, self._turn = self._turn, self._turn + 1
        return _answer(self._actor.in_turn.remote(self._owner, turn, verb, argument))


async def _answer(ref: Ref) -> Any:
    try:
        return await ref
    except RayActorError as error:
        raise WorkerLost(first_line(error)) from error
    except RayTaskError as error:
        if isinstance(error.cause, EngineFailed):
            raise WorkerLost(str(error.cause)) from error
        raise WorkerError(f"{type(error.cause).__name__}: {error.cause}") from error
    except ObjectLostError as error:  # what it was given
        raise WorkerError(first_line(error)) from error
    except RayError as error:  # ended by Ray for its memory, never placed, ...
        raise WorkerLost(first_line(error)) from error
