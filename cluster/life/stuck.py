"""What is done about a run that is stuck: every process says where it stands, and the driver ends itself.

In: the phase it is stuck in. Out: stacks in the run's logs, an event that names who gave none, and the end of the
driver by a signal, after which its supervisor resumes the run from the last commit. Left out: noticing it
(cluster/run/watchdog.py).
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable

from cluster.roles import stacks
from cluster.run.records.metrics import EventsWriter
from cluster.workers import on_every_node

ASKING_S, TELLING_S = 20.0, 3.0


def end_stuck(events: EventsWriter, folder: str) -> Callable[[str, float], None]:
    """What a watchdog calls."""

    def stuck(phase: str, seconds: float) -> None:
        # Whatever hangs below.
        threading.Timer(2 * ASKING_S, os.kill, (os.getpid(), signal.SIGKILL)).start()
        silent, asked = _silent(folder)
        who = f"; no stack from {', '.join(silent)}" if silent else ""
        text = f"no progress for {seconds:.0f} s in {phase}{who}; stacks of {asked} processes are in {folder}"
        events.write("stuck", text, silent=silent)
        os.kill(os.getpid(), signal.SIGKILL)  # the main thread may hear nothing any more

    return stuck


def _silent(folder: str) -> tuple[list[str], int]:
    """(processes that gave no stack, how many were asked)."""
    os.kill(os.getpid(), stacks.ASK)
    answers = on_every_node(stacks.ask_here, folder, timeout_s=ASKING_S)
    asked = [process for answer in answers for process in answer.value or ()]
    time.sleep(TELLING_S)
    silent = [f"{role} (process {pid})" for role, pid in asked if not stacks.told(folder, role, pid)]
    return [*silent, *(f"{answer.node} ({answer.error})" for answer in answers if answer.error)], len(asked) + 1
