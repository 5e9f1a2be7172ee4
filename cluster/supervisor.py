"""`raylign train` as its user sees it: a small process that runs the driver in another and starts it again when it was
killed.

In: the command's own arguments. Out: the driver's exit code. Only a death by a signal is mended (a machine short of
memory, someone's kill): a run that failed in its own words would fail again. A driver that is started again resumes
from the last commit. Signals to this process reach the driver, and the driver dies with it, however it dies. Left out:
everything a driver does (driver.py).
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from cluster.pool.recovery import FailureBudget

DRIVER = "RAYLIGN_DRIVER"
"""In the environment of a driver: the process that runs it."""
PR_SET_PDEATHSIG = 1
AGAIN = 75
"""Exit code of a driver that lost a worker where it could not repeat the step itself (EX_TEMPFAIL)."""
ASKED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Deaths by these were wished for."""


def is_driver() -> bool:
    return DRIVER in os.environ


def follow_supervisor() -> None:
    """Let this process die with the one that runs it."""
    supervisor = int(os.environ[DRIVER])
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != supervisor:  # it died before it could be followed
        os._exit(1)


def supervise(
    arguments: Sequence[str], begun: Callable[[], Path | None], limits: Callable[[Path], tuple[int, float]]
) -> int:
    """The exit code of `raylign ARGUMENTS`, which is started again with --resume when a signal ended it. begun: the run
    directory, once there is a run to resume in it. limits: (times, seconds before the first) that the run allows."""
    budget: FailureBudget | None = None
    command = list(arguments)
    while True:
        code, asked = _run(command)
        if asked and code < 0:
            return 128 + asked
        if (code >= 0 and code != AGAIN) or -code in ASKED:
            return code if code >= 0 else 128 - code
        name = "a failure at its start or end" if code == AGAIN else signal.Signals(-code).name
        if (run_dir := begun()) is None:
            print(f"the driver was ended by {name} before the run began; start it again", file=sys.stderr)
            return 1
        failures, backoff_s = limits(run_dir)
        budget = budget or FailureBudget(failures, backoff_s)
        wait_s = budget.failed(time.monotonic())
        if wait_s is None:
            again = " ".join(["raylign", *_resuming(arguments)])
            print(
                f"the driver was ended by {name}, {budget.spent} times, more than recovery.driver_failures "
                f"({failures}); resume with: {again}",
                file=sys.stderr,
            )
            return 1
        print(f"the driver was ended by {name}; resuming from the last commit", file=sys.stderr)
        time.sleep(wait_s)
        command = _resuming(arguments)


def _resuming(arguments: Sequence[str]) -> list[str]:
    return [*arguments, *([] if "--resume" in arguments else ["--resume"])]


def _run(arguments: Sequence[str]) -> tuple[int, int]:
    """(minus the signal that ended the driver, or its exit code; the signal that asked it to end, or 0)."""
    asked = 0
    environment = {**os.environ, DRIVER: str(os.getpid())}
    # In a group of its own: a terminal's Ctrl-C would otherwise reach it twice, and the second would cut its end short.
    driver = subprocess.Popen([sys.executable, "-m", "cluster.cli", *arguments], env=environment, process_group=0)

    def forward(number: int, _: object) -> None:
        nonlocal asked
        asked = number
        driver.send_signal(number)

    before = {number: signal.signal(number, forward) for number in ASKED}
    try:
        return driver.wait(), asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
