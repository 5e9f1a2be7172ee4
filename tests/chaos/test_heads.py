"""The cluster under a run: its head dies or is started again, and the run is the same run; a run whose supervisor died
leaves nothing on a cluster that goes on."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.chaos.harness import CHANGES, assert_same_run, driver_of, events_of, scratch, table_row
from tests.integration.rewards import SLOW
from tests.integration.runs import left_behind, marked, merged, recipe, start, stop, wait_for_step

PACED = {"reward": {"functions": {"digits": {"function": "tests/integration/rewards.py:paced_digit_share"}}}}
GONE_S = 30.0


@pytest.fixture
def pace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """While it exists the run's steps take their time."""
    path = tmp_path / "slow"
    path.touch()
    monkeypatch.setenv(SLOW, str(path))
    return path


@pytest.fixture
def cluster(pace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """One node whose head keeps its tables on disk."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_gcs_storage", "rocksdb")
    monkeypatch.setenv("RAY_gcs_storage_path", str(tmp_path / "gcs"))
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "include_dashboard": False})
    try:
        yield made
    finally:
        made.shutdown()


def wait_until(what: Callable[[], Any], timeout_s: float) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := what()):
        assert time.monotonic() < deadline, f"it did not come within {timeout_s} s"
        time.sleep(0.1)
    return found


@dataclass(frozen=True)
class Held:
    """A run that takes its time."""

    process: subprocess.Popen[bytes]
    folder: Path
    log: Path


@contextmanager
def held(folder: Path, model: Path, step: int, **changes: Any) -> Iterator[Held]:
    """A run from this step on; it goes on after the block, but for one that fails."""
    run, log = folder / "run", folder / "run.log"
    path = recipe(folder, model, **merged(merged(CHANGES, PACED), changes))
    process = start("train", path, "--run-dir", run, log=log)
    try:
        wait_for_step(process, run, step)
        yield Held(process, run, log)
    except BaseException:
        stop(process)
        raise


def assert_undisturbed(run: Held, undisturbed: Path) -> None:
    try:
        code = run.process.wait(200)
    finally:
        stop(run.process)
    assert code == 0, run.log.read_text()[-6000:]
    assert left_behind(run.log, timeout_s=GONE_S) == []
    assert_same_run(run.folder, undisturbed)


@pytest.mark.chaos
@pytest.mark.parametrize("part", ["gcs_server", "raylet"])
def test_a_local_cluster_that_dies_is_started_again_with_the_run(
    undisturbed: Path, tiny_model: Path, tmp_path: Path, pace: Path, part: str
) -> None:
    with held(tmp_path, tiny_model, step=3) as run:
        (victim,) = [found for found in marked(str(run.log)) if found.name() == part]
        victim.kill()
        at = time.time()
        pace.unlink()
    assert_undisturbed(run, undisturbed)
    assert "the driver was ended by the loss of its cluster; resuming from the last commit" in run.log.read_text()
    table_row(f"local cluster's {part} killed", at, [], events_of(run.folder, at, "start"))


@pytest.mark.chaos
def test_a_head_that_is_started_again_changes_nothing(
    cluster: Any, undisturbed: Path, tiny_model: Path, tmp_path: Path, pace: Path
) -> None:
    with held(tmp_path, tiny_model, step=2, ray={"address": cluster.address}) as run:
        cluster.head_node.kill_gcs_server()
        at = time.time()
        time.sleep(5.0)  # the run goes on without
        cluster.head_node.start_gcs_server()
        back = time.time()
        pace.unlink()
    assert_undisturbed(run, undisturbed)
    assert events_of(run.folder, at, "lost") == [], "nobody died of it"
    table_row("head's GCS killed, back after 5 s", at, [], events_of(run.folder, back, "checkpoint"))


@pytest.mark.chaos
def test_a_driver_that_dies_finds_its_workers_on_a_cluster_that_it_joined(
    cluster: Any, undisturbed: Path, tiny_model: Path, tmp_path: Path, pace: Path
) -> None:
    with held(tmp_path, tiny_model, step=3, ray={"address": cluster.address}) as run:
        driver = driver_of(run.process)
        driver.kill()
        at = time.time()
        pace.unlink()
    assert_undisturbed(run, undisturbed)
    (found,) = events_of(run.folder, at, "recovered")
    assert found["text"] == "the run goes on with 1 rollout workers and the learner of the driver before"


@pytest.mark.chaos
@pytest.mark.parametrize("victims", ["the supervisor", "all processes of the run that are not the cluster's"])
def test_a_run_whose_supervisor_dies_leaves_nothing_on_the_cluster(
    cluster: Any, tiny_model: Path, tmp_path: Path, pace: Path, victims: str
) -> None:
    """Its keeper ends the workers; where that dies too, they end with their lease."""
    before = scratch()
    with held(tmp_path, tiny_model, step=1, ray={"address": cluster.address}) as run:
        workers = [p for p in psutil.process_iter() if _works_for(p, run.folder)]
        assert len(workers) == 4, "learner, rollout worker, scorer and its reward functions"
        if victims != "the supervisor":
            for each in psutil.Process(run.process.pid).children():
                each.kill()
        stop(run.process)
    wait_until(lambda: not any(_alive(p) for p in workers), GONE_S)
    assert left_behind(run.log, timeout_s=GONE_S) == []
    wait_until(lambda: not scratch() - before, timeout_s=5.0)


def _works_for(process: psutil.Process, run: Path) -> bool:
    try:
        environment = process.environ()
        return bool(environment.get("RAYLIGN_ROLE")) and environment.get("RAYLIGN_STACKS", "").startswith(str(run))
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
