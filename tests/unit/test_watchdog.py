"""The last deadline on a clock that the test moves, and the stacks of a process that does not answer otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from cluster.roles import stacks
from cluster.run.watchdog import Watchdog


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
