"""Where every thread of every process of a run stands, for who looks at a run that is stuck.

In: a folder, in the environment of the run's processes. Out: a file a process, written when it is asked by a signal;
by C code, so that a process that holds Python's lock for ever writes it too. One that is stopped writes none: that is
how it shows. Left out: asking all nodes (cluster/life/stuck.py).
"""

from __future__ import annotations

import faulthandler
import os
import signal
from pathlib import Path

import psutil

FOLDER = "RAYLIGN_STACKS"
ASK = signal.SIGUSR2


def tell_when_asked() -> None:
    """From now on this process writes its stacks when it gets the signal. Without a folder it does nothing."""
    if (folder := os.environ.get(FOLDER)) is None:
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    file = open(_file(folder, os.environ.get("RAYLIGN_ROLE", "driver"), os.getpid()), "w")  # noqa: SIM115 - kept open
    faulthandler.register(ASK, file=file, all_threads=True)


def ask_here(folder: str) -> list[tuple[str, int]]:
    """Ask every process of the run on this node; (role, process id) of each."""
    asked = []
    for process in psutil.process_iter():
        try:
            environment = process.environ()
            role = environment.get("RAYLIGN_ROLE")
            if environment.get(FOLDER) == folder and role and _file(folder, role, process.pid).exists():
                process.send_signal(ASK)
                asked.append((role, process.pid))
        except (psutil.NoSuchProcess, psutil.AccessDenied):  # ended while we looked, or not ours
            continue
    return asked


def told(folder: str, role: str, pid: int) -> bool:
    """Whether that process has written its stacks."""
    file = _file(folder, role, pid)
    return file.exists() and file.stat().st_size > 0


def _file(folder: str, role: str, pid: int) -> Path:
    return Path(folder) / f"{role}-{pid}.txt"
