"""Ray places the shares that the plan gives learner ranks and engines as the plan means them: no two ranks, and no two
engines, on one GPU, when they start and when some are replaced. The GPUs are numbers that Ray is told; the workers only
say which of them they were given. Left out: what runs on a GPU (tests marked gpu)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import ray

from cluster.config.placement import RolePlan, plan
from tests.fixtures.configs import GRPO, config

GPUS = 4


class Worker:
    def gpus(self) -> list[int]:
        return [int(number) for number in ray.get_gpu_ids()]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(
        address="local",
        num_cpus=2,
        num_gpus=GPUS,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
    )
    yield
    ray.shutdown()


def start(role: RolePlan, count: int | None = None) -> list[Any]:
    """So many of the role's workers, each placed."""
    actor = ray.remote(Worker).options(num_cpus=0, num_gpus=role.gpus)
    workers = [actor.remote() for _ in range(role.count + role.spares if count is None else count)]
    ray.get([worker.gpus.remote() for worker in workers], timeout=60)
    return workers


def where(workers: list[Any]) -> list[int]:
    found = ray.get([worker.gpus.remote() for worker in workers], timeout=60)
    assert all(len(each) == 1 for each in found)
    return [each[0] for each in found]


def end(workers: list[Any]) -> None:
    for worker in workers:
        ray.kill(worker)


@pytest.mark.parametrize(
    ("ranks", "workers", "gpus"), [(4, 4, 4), (1, 4, 4), (2, 2, 3)], ids=["pairs", "one rank", "one is idle"]
)
def test_no_gpu_holds_two_ranks_or_two_engines_at_the_start_or_after_some_were_lost(
    cluster: None, ranks: int, workers: int, gpus: int
) -> None:
    placement = plan(config(GRPO, f"learner.ranks={ranks}", f"rollout.workers={workers}"), 8, gpus)
    idle = start(RolePlan("idle", GPUS - gpus, 0, 1.0, 1))  # takes what the plan was not told of
    learner, engine = placement.role("learner"), placement.role("rollout")
    learners = start(learner)
    engines = start(engine)
    try:
        for _ in range(2):
            assert len(set(where(learners))) == ranks
            assert len(set(where(engines))) == workers
            assert set(where(learners)) & set(where(engines)), "they share"
            lost = engines.pop(0)
            end([lost])
            engines += start(engine, 1)
            end(learners)
            learners = start(learner)
    finally:
        end([*learners, *engines, *idle])
