"""A network that is cut between two nodes: who is beyond it is given up, and the run goes on on this side; what comes
from there when it is whole again is too late to count.

The second node lives in a network namespace of its own, joined to this one by a pair of virtual interfaces; taking one
down cuts it off without ending anything there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.chaos.harness import CHANGES, assert_same_run, events_of, table_row
from tests.chaos.test_heads import PACED, pace, wait_until  # noqa: F401 - a fixture
from tests.chaos.test_nodes import roles_under
from tests.integration.runs import left_behind, merged, recipe, start, stop, train, wait_for_step

SPACE, HERE_LINK, THERE_LINK = "raylign-cut", "raylign-0", "raylign-1"
HERE, THERE, PORT = "10.77.0.1", "10.77.0.2", 26379
TWO_WORKERS = merged(CHANGES, {"rollout": {"workers": 2}})


def run_command(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stdout}{done.stderr}"


def may_cut() -> bool:
    """Whether this user may make network namespaces."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        return False
    made = subprocess.run(["ip", "netns", "add", f"{SPACE}-try"], capture_output=True).returncode == 0
    return made and subprocess.run(["ip", "netns", "del", f"{SPACE}-try"], capture_output=True).returncode == 0


@dataclass
class Nodes:
    """A head here and a node beyond the link."""

    address: str

    def cut(self) -> None:
        run_command("ip", "link", "set", HERE_LINK, "down")

    def heal(self) -> None:
        run_command("ip", "link", "set", HERE_LINK, "up")

    def beyond(self) -> set[str]:
        """Roles of the processes beyond the link."""
        pids = subprocess.run(["ip", "netns", "pids", SPACE], capture_output=True, text=True).stdout.split()
        raylets = [int(pid) for pid in pids if psutil.Process(int(pid)).name() == "raylet"]
        return roles_under(raylets[0]) if raylets else set()


@pytest.fixture
def nodes(pace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:  # noqa: F811
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    ray = [str(Path(sys.executable).with_name("ray")), "start", "--num-cpus=4", "--disable-usage-stats"]
    run_command("ip", "netns", "add", SPACE)
    try:
        run_command("ip", "link", "add", HERE_LINK, "type", "veth", "peer", "name", THERE_LINK)
        run_command("ip", "link", "set", THERE_LINK, "netns", SPACE)
        run_command("ip", "addr", "add", f"{HERE}/24", "dev", HERE_LINK)
        run_command("ip", "link", "set", HERE_LINK, "up")
        for words in (["addr", "add", f"{THERE}/24", "dev", THERE_LINK], ["link", "set", THERE_LINK, "up"]):
            run_command("ip", "-n", SPACE, *words)
        run_command("ip", "-n", SPACE, "link", "set", "lo", "up")
        head = [f"--port={PORT}", f"--node-ip-address={HERE}", "--include-dashboard=false"]
        run_command(*ray, "--head", *head)
        run_command("ip", "netns", "exec", SPACE, *ray, f"--address={HERE}:{PORT}", f"--node-ip-address={THERE}")
        yield Nodes(f"{HERE}:{PORT}")
    finally:
        subprocess.run([ray[0], "stop", "--force"], capture_output=True, timeout=60)
        for pid in subprocess.run(["ip", "netns", "pids", SPACE], capture_output=True, text=True).stdout.split():
            psutil.Process(int(pid)).kill()
        subprocess.run(["ip", "netns", "del", SPACE], capture_output=True)
        subprocess.run(["ip", "link", "del", HERE_LINK], capture_output=True)


@pytest.fixture(scope="module")
def calm(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of two workers on a network that nobody cuts."""
    folder = tmp_path_factory.mktemp("calm")
    train(recipe(folder, tiny_model, **TWO_WORKERS), folder / "run")
    return folder / "run"


@pytest.mark.chaos
@pytest.mark.skipif(not may_cut(), reason="needs the right to make network namespaces, and the ip command")
@pytest.mark.parametrize("heals", [False, True], ids=["for good", "until they are given up"])
def test_workers_beyond_a_cut_are_given_up_and_the_run_goes_on(
    nodes: Nodes,
    tiny_model: Path,
    tmp_path: Path,
    calm: Path,
    pace: Path,  # noqa: F811
    heals: bool,
) -> None:
    run, log = tmp_path / "run", tmp_path / "run.log"
    joined = {"ray": {"address": nodes.address}, "rollout": {"timeout_s": 60, "stall_timeout_s": 50}}
    path = recipe(tmp_path, tiny_model, **merged(merged(TWO_WORKERS, PACED), joined))
    process = start("train", path, "--run-dir", run, log=log)
    try:
        wait_for_step(process, run, 3)
        beyond = nodes.beyond()
        assert any(role.startswith("rollout") for role in beyond), beyond
        nodes.cut()
        at = time.time()
        if heals:  # what its worker made meanwhile, and its answers to what was asked before, come now
            wait_until(lambda: events_of(run, at, "lost"), timeout_s=60)
            nodes.heal()
        pace.unlink()
        code = process.wait(250)
    finally:
        stop(process)
    assert code == 0, log.read_text()[-6000:]
    assert left_behind(log, timeout_s=30) == []
    # Who is left takes the other's share: an engine's log-probs round by what else it decodes then. The learner, which
    # takes its own, sees none of it.
    assert_same_run(run, calm, rounded=["policy/mismatch"])
    whole = [e for e in events_of(run, at, "worker") if "joined" in e["text"]]
    row = f"network cut off a node with {', '.join(sorted(beyond))}{', until they are given up' if heals else ''}"
    table_row(row, at, events_of(run, at, "lost"), whole)
