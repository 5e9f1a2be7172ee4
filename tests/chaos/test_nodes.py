"""A node that is removed with all that is on it (workers, learner, scorer, samples, weights): another takes over."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.chaos.harness import CHANGES, assert_same_run
from tests.integration.rewards import SLOW
from tests.integration.runs import left_behind, merged, recipe, start, stop, wait_for_step

NODE_CPUS = 4


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head without CPUs: whatever works works on other nodes."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        yield made
    finally:
        made.shutdown()


def roles_under(raylet: int) -> set[str]:
    """Roles of the processes that this raylet runs."""
    found = set()
    for process in psutil.Process(raylet).children(recursive=True):
        try:
            if role := process.environ().get("RAYLIGN_ROLE"):
                found.add(role.partition(".")[0])
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


@pytest.mark.chaos
def test_a_node_that_is_removed_with_every_worker_changes_nothing(
    cluster: Any, undisturbed: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pace = tmp_path / "slow"
    pace.touch()
    monkeypatch.setenv(SLOW, str(pace))  # a node's workers have its environment
    first = cluster.add_node(num_cpus=NODE_CPUS)
    run, log = tmp_path / "run", tmp_path / "run.log"
    slow = {"ray": {"address": cluster.address}, "reward": PACED}
    path = recipe(tmp_path, tiny_model, **merged(CHANGES, slow))
    process = start("train", path, "--run-dir", run, log=log)
    try:
        wait_for_step(process, run, 3)
        raylet = next(p.pid for p in psutil.process_iter(["cmdline"]) if _is_raylet_of(p, first))
        assert {"rollout-0", "learner-0", "scorer-0"} <= roles_under(raylet)
        cluster.add_node(num_cpus=NODE_CPUS)
        cluster.remove_node(first, allow_graceful=False)
        pace.unlink()
        deadline = time.monotonic() + 200
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.5)
        assert process.poll() == 0, log.read_text()[-6000:]
    finally:
        stop(process)
    assert left_behind(log, timeout_s=30) == []
    assert_same_run(run, undisturbed)


PACED = {"functions": {"digits": {"function": "tests/integration/rewards.py:paced_digit_share"}}}


def _is_raylet_of(process: psutil.Process, node: Any) -> bool:
    line = process.info["cmdline"] or []
    return bool(line) and line[0].endswith("raylet") and any(node.node_id in part for part in line)
