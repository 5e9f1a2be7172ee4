"""Nodes on demand: Ray's own autoscaler over nodes that are processes here, asked by two jobs through the broker."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._private.services import get_node_ip_address

from cluster.config.placement import Placement, RolePlan
from cluster.life.connection import Cluster
from cluster.roles.learner import free_port
from cluster.training.parts.rollouts import node_requests
from cluster.workers.broker import NodeRequests, asked_of_autoscaler
from tests.integration.runs import MARK, left_behind, marked

HEAD, WORKER = "ray.head.default", "worker"


def autoscaling(address: str) -> dict[str, Any]:
    """A head with one CPU, and at most three nodes with two."""
    empty = [f"{kind}_commands" for kind in ("initialization", "setup", "head_setup", "worker_setup")]
    empty += ["head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files"]
    empty += ["rsync_exclude", "rsync_filter"]
    return {
        "cluster_name": "on-demand",
        "max_workers": 3,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 0.05,
        "provider": {"type": "fake_multinode", "gcs_address": address},
        "auth": {"ssh_user": "nobody"},
        "available_node_types": {
            HEAD: {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
            WORKER: {"resources": {"CPU": 2}, "node_config": {}, "min_workers": 0, "max_workers": 3},
        },
        "head_node_type": HEAD,
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        **{key: [] for key in empty},
    }


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("on-demand")
    address = f"{get_node_ip_address()}:{free_port()}"
    config = folder / "autoscaling.json"
    config.write_text(json.dumps(autoscaling(address)))
    mark = str(folder)
    environment = {
        **os.environ,
        MARK: mark,
        "RAY_ADDRESS": "",
        "RAY_AUTH_MODE": "disabled",
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
    }
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", f"--port={address.rpartition(':')[2]}"]
    start += ["--num-cpus=1", f"--autoscaling-config={config}", "--include-dashboard=false"]
    done = subprocess.run(start, env=environment, capture_output=True, text=True, timeout=120)
    try:
        assert done.returncode == 0, done.stderr
        yield address
    finally:
        for process in marked(mark):
            process.kill()
        assert left_behind(folder) == []


def nodes_become(count: int, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while (alive := sum(node["Alive"] for node in ray.nodes())) != count:
        assert time.monotonic() < deadline, f"{alive} nodes, {count} expected"
        time.sleep(0.2)


def wanted() -> list[dict[str, float]]:
    return sorted(asked_of_autoscaler(), key=lambda bundle: bundle["CPU"])


def test_two_jobs_get_the_nodes_that_both_need_and_give_them_back(address: str) -> None:
    """A learner and rollout workers of a CPU each, beside a job that wants a node: the head has one CPU, a node two."""
    placement = Placement((RolePlan("learner", 1, 1, 0, 1), RolePlan("rollout", 1, 1, 0, 1)), "cpu")
    cpu, node = {"CPU": 1.0}, {"CPU": 2.0}
    with Cluster(address, 0):
        resized = node_requests("a", placement)
        assert wanted() == [cpu, cpu]
        nodes_become(2)
        other = NodeRequests("b")
        other.want([node])
        assert wanted() == [cpu, cpu, node]
        resized(3)
        assert wanted() == [cpu, cpu, cpu, cpu, node]
        resized(0)
        assert wanted() == [node], "the other's request stands"
        other.close()
        assert wanted() == [], "and the broker has ended"
        nodes_become(1)


def test_a_job_that_dies_is_forgotten_after_its_lease(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Cluster(address, 0):
        dies, lives = NodeRequests("dies", lease_s=8.0), NodeRequests("lives", lease_s=8.0)
        lives.want([{"CPU": 1.0}])
        dies.want([{"CPU": 2.0}])
        monkeypatch.setattr(dies, "_send", lambda: None)  # as if its process were gone
        deadline = time.monotonic() + 40
        while asked_of_autoscaler() != [{"CPU": 1.0}]:
            assert time.monotonic() < deadline
            time.sleep(0.5)
        lives.close()
        dies.close()
        assert asked_of_autoscaler() == []
