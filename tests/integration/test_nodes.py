"""`doctor --address` on a real cluster of two nodes: every node is asked, and one that fails or hangs is named."""

import time
from pathlib import Path

import pytest
import ray
import typer
from ray.cluster_utils import Cluster as TestCluster
from typer.testing import CliRunner

from cluster.commands.doctor import doctor
from cluster.inspect import health
from cluster.life.connection import Cluster
from cluster.workers import on_every_node
from tests.fixtures.node_tasks import first_letter, sleep

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Two nodes; the driver that attaches ships nothing, so the nodes import this checkout by its path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        nodes = TestCluster(initialize_head=True, head_node_args={"num_cpus": 1})
        nodes.add_node(num_cpus=1)
        nodes.wait_for_nodes()
        yield nodes.address
        nodes.shutdown()


def test_every_node_answers_once(address):
    with Cluster(address, 0):
        answers = on_every_node(first_letter, "abc", timeout_s=60)
        assert [(a.value, a.error) for a in answers] == [("a", None), ("a", None)]


def test_a_node_that_raises_or_hangs_is_named_and_costs_only_its_time(address):
    with Cluster(address, 0):
        raised = on_every_node(first_letter, "", timeout_s=60)
        began = time.monotonic()
        hung = on_every_node(sleep, 60, timeout_s=2)
        assert time.monotonic() - began < 20
    assert [answer.error for answer in raised] == ["IndexError: string index out of range"] * 2
    assert [answer.error for answer in hung] == ["no answer within 2 s"] * 2


def test_doctor_reports_each_node_and_leaves_no_file(address, tmp_path, monkeypatch):
    monkeypatch.setattr(health, "IMPORTED", ())
    app = typer.Typer()
    app.command()(doctor)
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    result = CliRunner().invoke(app, ["--address", address, "--run-dir", str(tmp_path / "run"), "--model", str(model)])
    lines = [line for line in result.stdout.splitlines() if "node " in line]
    assert len(lines) == 2
    assert all(line.startswith("ok") and "reads and writes the run directory, sees the model" in line for line in lines)
    assert list((tmp_path / "run").iterdir()) == []
    assert not ray.is_initialized()


def test_doctor_fails_when_no_cluster_answers(tmp_path):
    app = typer.Typer()
    app.command()(doctor)
    result = CliRunner().invoke(app, ["--address", "127.0.0.1:1", "--run-dir", str(tmp_path)])
    assert result.exit_code == 1
    assert "fail  cluster: no Ray cluster answers at 127.0.0.1:1" in result.stdout
