"""The last deadline on a clock that the test moves, and the stacks of a process that does not answer otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

from cluster.roles import stacks
from cluster.run.watchdog import Watchdog
from cluster.workers import LearnerGroup, ScorerPool, learner, scorer


def test_it_calls_once_a_run_has_not_moved_for_longer_than_its_deadline():
    now, calls = [0.0], []
    dog = Watchdog(10.0, lambda what, seconds: calls.append((what, seconds)), clock=lambda: now[0])
    for at, what in ((5.0, "rollout"), (14.0, "update"), (23.0, "publish")):
        now[0] = at
        assert not dog.look()
        dog.hear(what)
    now[0] = 33.0
    assert not dog.look()
    now[0] = 33.5
    assert dog.look() and calls == [("publish", 10.5)]


def test_it_watches_only_while_the_run_goes_on():
    calls = []
    with Watchdog(0.05, lambda what, seconds: calls.append(what)) as dog:
        for _ in range(5):
            dog.hear("a step")
            time.sleep(0.02)
    time.sleep(0.1)
    assert calls == []


def test_it_hears_of_every_wait_of_a_step_as_it_begins_and_of_none_beside_the_steps(monkeypatch):
    """Several waits make a phase, each with its own deadline; checkpoints are written while a step may be stuck."""
    heard: list[str] = []
    monkeypatch.setattr(learner, "get", lambda refs, timeout_s, what: [{}])
    rank = SimpleNamespace(saved=SimpleNamespace(remote=lambda directory: None))
    group = LearnerGroup.__new__(LearnerGroup)
    group._ranks, group._timeout_s, group.heard = [rank], 1.0, heard.append
    group.wait([None], "computing old")
    group.saved("stage")
    assert heard == ["computing old"]
    monkeypatch.setattr(scorer, "get", lambda refs, timeout_s, what: refs)
    late = [["ref"], []]
    pool = ScorerPool.__new__(ScorerPool)
    pool._failures, pool._timeout_s, pool._busy, pool.heard = 1, 1.0, {"ref": 0}, heard.append
    monkeypatch.setattr(scorer, "_task", lambda ref: ref)
    monkeypatch.setattr(pool, "_late", lambda refs: late.pop(0))
    monkeypatch.setattr(pool, "_end", lambda scorer: None)
    assert pool.wait(["ref"]) == ["ref"] and heard[1:] == ["scoring", "scoring"], "once more for a second try"


STUCK = """
import sys, threading, time
from cluster.roles.stacks import tell_when_asked
tell_when_asked()
def waits_for_ever():
    lock = threading.Lock(); lock.acquire(); print("ready", flush=True); lock.acquire()
waits_for_ever()
"""


def test_a_process_that_waits_for_ever_says_where(tmp_path: Path):
    environment = {**os.environ, stacks.FOLDER: str(tmp_path), "RAYLIGN_ROLE": "rollout-3"}
    process = subprocess.Popen([sys.executable, "-c", STUCK], env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "ready\n"
        assert not stacks.told(str(tmp_path), "rollout-3", process.pid)
        assert stacks.ask_here(str(tmp_path)) == [("rollout-3", process.pid)]
        deadline = time.monotonic() + 10
        while "waits_for_ever" not in (text := (tmp_path / f"rollout-3-{process.pid}.txt").read_text()):
            assert time.monotonic() < deadline, text
            time.sleep(0.01)
        assert stacks.told(str(tmp_path), "rollout-3", process.pid)
        assert stacks.ask_here(str(tmp_path / "another run")) == []
    finally:
        process.kill()
        process.wait(10)
