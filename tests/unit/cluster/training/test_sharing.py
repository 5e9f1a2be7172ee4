"""Where engines share the learner's GPUs: who starts first, and what each engine is told to take. No worker is started;
GPUs, nodes and the actors' handles are faked."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.config import Config
from cluster.config.placement import Placement, plan
from cluster.errors import UserError
from cluster.inspect.machine import GIB
from cluster.roles.learner_models import LearnerSpec
from cluster.roles.rollout import RolloutSpec
from cluster.training.parts import online_workers, rollouts
from cluster.training.parts.logbook import Run
from cluster.training.parts.rollouts import least_gpu, split_of, start_pool
from tests.fixtures.configs import GRPO, PPO, config


class Learner:
    """Is loaded when `loaded` is set, which a second thread does when the driver has gone on or waits for it."""

    found = False

    def __init__(self, said: list[str], spec: LearnerSpec) -> None:
        self._said, self.spec = said, spec
        self._waited_for = threading.Event()

    def close(self) -> None:
        """Nothing was started."""

    def build(self, timeout_s: float) -> list[Any]:
        return []

    def wait_built(self, refs: Any, timeout_s: float) -> list[Any]:
        self._waited_for.wait(5.0)
        self._said.append("the learner is loaded")
        return []


def started(monkeypatch: pytest.MonkeyPatch, given: Config, gpus: int) -> tuple[list[str], Learner]:
    """What `start_online_workers` did, in order, and the learner it made."""
    said: list[str] = []
    made: list[Learner] = []

    def learner(role: Any, spec: LearnerSpec, timeout_s: float) -> Learner:
        said.append("the learner is asked for")
        made.append(Learner(said, spec))
        return made[0]

    def pool(*arguments: Any) -> Any:
        said.append("engines are asked for")
        made[0]._waited_for.set()
        return SimpleNamespace(close=lambda: None)

    monkeypatch.setattr(online_workers, "LearnerGroup", learner)
    monkeypatch.setattr(online_workers, "start_pool", pool)
    monkeypatch.setattr(online_workers, "ScorerPool", lambda *arguments: SimpleNamespace())
    monkeypatch.setattr(online_workers, "scorer_spec", lambda *arguments: None)
    quiet: Any = SimpleNamespace(write=lambda *words: None, phase=lambda what: made[0]._waited_for.set())
    unused: Any = None
    run = Run(given, unused, unused, quiet, quiet, Path("models/none"))
    online_workers.start_online_workers(run, plan(given, 2, gpus), [], Path()).built.result()
    return said, made[0]


@pytest.mark.parametrize(
    ("overrides", "gpus"),
    [([], 1), (["learner.ranks=2", "rollout.workers=2"], 2), (["learner.gpus_per_rank=0.5"], 1)],
    ids=["by itself", "two pairs", "as it is told"],
)
def test_engines_on_the_learner_s_gpus_are_asked_for_when_it_is_loaded(monkeypatch, overrides, gpus):
    said, learner = started(monkeypatch, config(GRPO, *overrides), gpus)
    assert said == ["the learner is asked for", "the learner is loaded", "engines are asked for"]
    assert learner.spec.gives_back, "torch keeps what an update took, which the engine needs next"


@pytest.mark.parametrize("gpus", [0, 2])
def test_engines_elsewhere_load_beside_the_learner(monkeypatch, gpus):
    said, learner = started(monkeypatch, config(GRPO), gpus)
    assert said == ["the learner is asked for", "engines are asked for", "the learner is loaded"]
    assert not learner.spec.gives_back


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes this machine have GPUs of so many GB."""

    def have(*sizes: float) -> None:
        monkeypatch.setattr(rollouts, "visible_gpus", lambda environment: tuple(int(gb * GIB) for gb in sizes))

    return have


def spec_of(monkeypatch: pytest.MonkeyPatch, given: Config, placement: Placement, model: Path) -> tuple[Any, list[str]]:
    """What the pool would start its workers with, what it says to scaling up, and the events."""
    told: list[str] = []
    made: dict[str, Any] = {}
    monkeypatch.setattr(rollouts, "start_rollout", lambda role, spec: made.setdefault("spec", spec))
    monkeypatch.setattr(rollouts, "living_rollout", lambda role: {})
    made["workers"] = []

    class Pool(list[str]):
        def __init__(self, start: Any, count: int, **more: Any) -> None:
            super().__init__(["worker"] * count)
            made.update(more, workers=self)

    monkeypatch.setattr(rollouts, "RolloutPool", Pool)
    start_pool(given, placement, model, lambda kind, text: told.append(f"{kind}: {text}"))
    return SimpleNamespace(**made), told


def test_an_engine_beside_a_learner_is_given_its_cache_in_bytes_and_the_events_say_how_much(
    monkeypatch, gpus, tiny_model
):
    gpus(80, 24)
    given = config(GRPO, f"model.path={tiny_model}")
    placement = plan(given, 2, 1)
    pool, told = spec_of(monkeypatch, given, placement, tiny_model)
    spec: RolloutSpec = pool.spec
    split = split_of(given, placement, tiny_model)
    assert split.gpu == 24 * GIB, "the smallest of those that it may get"
    assert spec.engine.gpu_cache_bytes == split.cache > 0
    assert spec.engine.gpu_memory_utilization == split.engine / (24 * GIB)
    assert told == [f"placement: {split}"]
    assert pool.refuse(1) == f"{placement.shared}; one more finds no GPU that holds no engine"


def test_engines_that_were_let_go_of_their_shared_gpus_may_come_back_and_no_more(monkeypatch, gpus, tiny_model):
    gpus(80, 80, 80)
    given = config(GRPO, f"model.path={tiny_model}", "rollout.workers=3")
    placement = plan(given, 2, 3)
    pool, _ = spec_of(monkeypatch, given, placement, tiny_model)
    del pool.workers[1:]
    assert pool.refuse(2) is None
    assert pool.refuse(3) == f"{placement.shared}; one more finds no GPU that holds no engine"


def test_an_engine_of_its_own_gpu_measures_it_and_one_that_is_told_a_share_takes_that(monkeypatch, gpus, tiny_model):
    gpus(80, 80)
    given = config(GRPO, f"model.path={tiny_model}")
    pool, told = spec_of(monkeypatch, given, plan(given, 2, 2), tiny_model)
    assert (pool.spec.engine.gpu_cache_bytes, pool.spec.engine.gpu_memory_utilization, told) == (None, 0.85, [])
    shared = config(
        GRPO, f"model.path={tiny_model}", "learner.gpus_per_rank=0.5", "rollout.gpu_memory_utilization=0.25"
    )
    pool, told = spec_of(monkeypatch, shared, plan(shared, 2, 1), tiny_model)
    assert pool.spec.engine.gpu_memory_utilization == 0.25
    assert 15 * GIB < pool.spec.engine.gpu_cache_bytes < 20 * GIB


def test_a_critic_counts_among_what_the_learner_takes(gpus, tiny_model):
    gpus(80)
    policy, both = (config(text, f"model.path={tiny_model}") for text in (GRPO, PPO))
    alone, more = (split_of(given, plan(given, 2, 1), tiny_model) for given in (policy, both))
    # Its own 18 bytes a parameter and the reference's 2.
    parameters = 12_800 + 2 * (49_152 + 98_304 + 256) + 128
    assert more.learner - alone.learner == 20 * parameters


def test_a_gpu_that_does_not_hold_both_is_refused_with_what_it_needs(gpus, tiny_model):
    gpus(2)
    given = config(GRPO, f"model.path={tiny_model}")
    with pytest.raises(UserError, match=r"share needs about 2\.\d GB and the smallest has 2\.0 GB; `raylign check`"):
        split_of(given, plan(given, 2, 1), tiny_model)


def test_gpus_of_another_machine_are_asked_of_its_nodes(monkeypatch, tiny_model):
    asked: list[Any] = []

    def answers(function: Any, environment: Any, timeout_s: float) -> list[Any]:
        asked.append(environment)
        return [SimpleNamespace(value=value) for value in ((80 * GIB, 40 * GIB), None, ())]

    monkeypatch.setattr(rollouts, "on_every_node", answers)
    assert least_gpu("auto") == 40 * GIB
    assert asked == [{}], "Ray hides the GPUs of a node from a task that takes none"
    monkeypatch.setattr(rollouts, "on_every_node", lambda *arguments, **named: [SimpleNamespace(value=None)])
    given = config(GRPO, f"model.path={tiny_model}", "ray.address=auto")
    with pytest.raises(UserError, match=r"no node tells the memory of its GPUs .*; set rollout.gpu_memory_utilization"):
        split_of(given, plan(given, 2, 1), tiny_model)
    told = config(GRPO, f"model.path={tiny_model}", "ray.address=auto", "rollout.gpu_memory_utilization=0.3")
    assert split_of(told, plan(told, 2, 1), tiny_model) is None
