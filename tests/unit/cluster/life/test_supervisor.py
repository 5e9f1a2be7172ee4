"""The supervisor over drivers that are small shell scripts: what is started again, what is passed on, what is said."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from cluster.life import supervisor

PROGRAM = """
import sys
from pathlib import Path
from cluster.life import supervisor
folder = Path(sys.argv[1])
sys.executable = str(folder / "driver")
resuming = lambda: ["train", "saved.yaml", "--resume"] if (folder / "config.yaml").exists() else None
sys.exit(supervisor.supervise(["train", "x.yaml"], resuming, (2, 0.01)))
"""


@pytest.fixture
def start(tmp_path: Path):
    """Start a supervisor whose driver is this script, called with the number of lives before it as $LIFE."""
    processes = []

    def started(script: str) -> subprocess.Popen[str]:
        driver = tmp_path / "driver"
        driver.write_text(
            f'#!/bin/bash\ncd {tmp_path}\nLIFE=$(cat lives 2>/dev/null | wc -l)\necho "$*" >> lives\n{script}\n'
        )
        driver.chmod(0o755)
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(tmp_path)], stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        processes.append(process)
        return process

    yield started
    sessions = {process.pid for process in processes}
    for pid in psutil.pids():  # what a failed test left: the supervisor, and its driver in a group of its own
        with contextlib.suppress(ProcessLookupError):  # it ended by itself meanwhile
            if os.getsid(pid) in sessions:
                os.kill(pid, signal.SIGKILL)
    for process in processes:
        process.wait()


def lives(folder: Path) -> list[str]:
    return (folder / "lives").read_text().splitlines()


@pytest.mark.parametrize("code", [0, 1, 2, 130])
def test_a_driver_that_ends_in_its_own_words_is_not_started_again(start, tmp_path, code):
    process = start(f"touch config.yaml; exit {code}")
    assert process.wait(20) == code and len(lives(tmp_path)) == 1


def test_a_driver_that_was_killed_is_resumed(start, tmp_path):
    process = start('touch config.yaml; if [ "$LIFE" -lt 2 ]; then kill -9 $$; fi; exit 0')
    assert process.wait(20) == 0
    assert lives(tmp_path) == ["-m cluster.cli train x.yaml", *["-m cluster.cli train saved.yaml --resume"] * 2]
    assert process.stderr.read() == "the driver was ended by SIGKILL; resuming from the last commit\n" * 2


def test_a_driver_that_lost_a_worker_at_its_start_is_started_again(start, tmp_path):
    process = start('touch config.yaml; if [ "$LIFE" -lt 1 ]; then exit 75; fi; exit 0')
    assert process.wait(20) == 0 and len(lives(tmp_path)) == 2
    assert (
        process.stderr.read()
        == "the driver was ended by a failure at its start or end; resuming from the last commit\n"
    )


def test_a_driver_that_dies_after_it_was_asked_to_end_is_not_started_again(start, tmp_path):
    process = start("touch config.yaml; trap 'kill -9 $$' TERM; touch ready; while true; do sleep 0.05; done")
    _until(tmp_path / "ready")
    process.terminate()
    assert process.wait(20) == 128 + signal.SIGTERM and len(lives(tmp_path)) == 1


def test_one_death_more_than_the_run_allows_ends_it_with_what_resumes_it(start, tmp_path):
    process = start("touch config.yaml; kill -9 $$")
    assert process.wait(20) == 1 and len(lives(tmp_path)) == 3
    assert process.stderr.read().endswith(
        "the driver was ended by SIGKILL, 3 times, more than recovery.driver_failures (2); resume with: raylign train "
        "saved.yaml --resume\n"
    )


def test_a_death_before_the_run_began_has_nothing_to_resume(start, tmp_path):
    process = start("kill -9 $$")
    assert process.wait(20) == 1 and len(lives(tmp_path)) == 1
    assert process.stderr.read() == "the driver was ended by SIGKILL before the run began; start it again\n"


def test_a_signal_reaches_the_driver_once(start, tmp_path):
    process = start("touch config.yaml; trap 'echo asked >> asked' INT; touch ready; sleep 1; sleep 1; exit 130")
    _until(tmp_path / "ready")
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    assert (tmp_path / "asked").read_text() == "asked\n"


def test_a_driver_that_was_asked_twice_is_killed(start, tmp_path):
    process = start("touch config.yaml; trap 'touch asked' INT; touch ready; while true; do sleep 0.05; done")
    _until(tmp_path / "ready")
    process.send_signal(signal.SIGINT)
    _until(tmp_path / "asked")
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130 and len(lives(tmp_path)) == 1
    assert process.stderr.read() == "the driver did not end and was killed; the last commit stands\n"


def test_a_driver_that_does_not_end_when_asked_is_killed(start, tmp_path, monkeypatch):
    program = PROGRAM.replace("sys.exit(", "supervisor.ENDING_S = 0.3\nsys.exit(")
    monkeypatch.setitem(globals(), "PROGRAM", program)
    process = start("touch config.yaml; trap 'touch asked' TERM; touch ready; while true; do sleep 0.05; done")
    _until(tmp_path / "ready")
    process.terminate()
    assert process.wait(20) == 128 + signal.SIGTERM and (tmp_path / "asked").exists()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_a_signal_that_is_ignored_when_it_starts_stays_so(start, tmp_path, monkeypatch, number):
    """`nohup raylign train ... &`, then the terminal is closed; a script's background job, then its Ctrl-C."""
    program = PROGRAM.replace("import sys", f"import signal, sys\nsignal.signal({number:d}, signal.SIG_IGN)", 1)
    monkeypatch.setitem(globals(), "PROGRAM", program.replace("sys.exit(", "supervisor.ENDING_S = 0.1\nsys.exit("))
    process = start("touch config.yaml ready; sleep 1; exit 0")
    _until(tmp_path / "ready")
    process.send_signal(number)
    assert process.wait(20) == 0 and process.stderr.read() == ""


def test_the_driver_dies_with_its_supervisor(tmp_path):
    program = f"""
import os, sys, time
sys.path.insert(0, {str(Path.cwd())!r})
from cluster.life import supervisor
supervisor.follow_supervisor()
with open({str(tmp_path / "writing")!r}, "w") as file:
    file.write(str(os.getpid()))
os.rename(file.name, {str(tmp_path / "ready")!r})
time.sleep(60)
"""
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import os, subprocess, sys\n"
            f"subprocess.Popen([sys.executable, '-c', {program!r}], env={{**os.environ, {supervisor.DRIVER!r}: "
            "str(os.getpid())}).wait()",
        ]
    )
    _until(tmp_path / "ready")
    driver = psutil.Process(int((tmp_path / "ready").read_text()))
    parent.kill()
    parent.wait(10)
    driver.wait(10)


def _until(path: Path) -> None:
    deadline = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < deadline, os.listdir(path.parent)
        time.sleep(0.01)


KEPT_PROGRAM = """
import sys
from pathlib import Path
from cluster.life import supervisor
folder = Path(sys.argv[1])
sys.executable = str(folder / "driver")

class Keeper:
    '''A cluster of which the first goes when a file says so.'''
    made = 0
    def __init__(self):
        Keeper.made += 1
        self.number, self.line, self.ended = Keeper.made, None, False
    @property
    def alive(self):
        return not (self.number == 1 and (folder / "gone").exists())
    def look(self, wait_s):
        self.line = f"cluster {self.number}"
        return True
    def end(self):
        with (folder / "ends").open("a") as file:
            print(self.number, file=file)

resuming = lambda: ["train", "saved.yaml", "--resume"] if (folder / "config.yaml").exists() else None
def keep(again):
    with (folder / "asked").open("a") as file:
        print(again, file=file)
    return Keeper()
sys.exit(supervisor.supervise(["train", "x.yaml"], resuming, (3, 0.01), keep))
"""


@pytest.fixture
def start_kept(start, tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "PROGRAM", KEPT_PROGRAM)
    return start


def test_every_driver_is_told_the_cluster_that_is_kept(start_kept, tmp_path):
    told = 'cat <&"$RAYLIGN_KEPT" >> told; echo >> told'
    process = start_kept(f'touch config.yaml; {told}; if [ "$LIFE" -lt 2 ]; then kill -9 $$; fi; exit 0')
    assert process.wait(20) == 0
    assert (tmp_path / "told").read_text().split("\n")[:-1] == ["cluster 1"] * 3
    assert (tmp_path / "asked").read_text() == "False\n" and (tmp_path / "ends").read_text() == "1\n"


@pytest.mark.parametrize("then", ["while true; do sleep 0.05; done", "exit 1"])
def test_a_driver_whose_cluster_is_gone_is_ended_and_resumed_with_another(start_kept, tmp_path, then):
    told = 'cat <&"$RAYLIGN_KEPT" >> told; echo >> told'
    process = start_kept(f'touch config.yaml; {told}; if [ "$LIFE" -ge 1 ]; then exit 0; fi; touch gone; {then}')
    assert process.wait(20) == 0
    assert (tmp_path / "told").read_text().split() == ["cluster", "1", "cluster", "2"]
    assert (tmp_path / "asked").read_text() == "False\nTrue\n" and (tmp_path / "ends").read_text() == "2\n1\n"
    assert process.stderr.read() == "the driver was ended by the loss of its cluster; resuming from the last commit\n"
