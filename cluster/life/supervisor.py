"""`raylign train` as its user sees it: a small process that runs the driver in another and starts it again when it was
killed.

In: the command's own arguments. Out: the driver's exit code. Only a death by a signal, or of the cluster, is mended (a
machine short of memory, someone's kill): a run that failed in its own words would fail again. A driver that is started
again resumes from the last commit; the cluster and its workers were kept meanwhile (keeper.py). Signals to this process
reach the driver, and the driver dies with it, however it dies. Left out: everything a driver does (cluster/driver.py).
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from cluster.life.keeper import Keeper
from cluster.life.kept import KEPT
from cluster.pool.members.recovery import FailureBudget

DRIVER = "RAYLIGN_DRIVER"
"""In the environment of a driver: the process that runs it."""
PR_SET_PDEATHSIG = 1
AGAIN = 75
"""Exit code of a driver that lost a worker where it could not repeat the step itself (EX_TEMPFAIL)."""
WATCH_EVERY_S = 0.2
LOST = "the loss of its cluster"
KNOWN_S = 2.5
"""Until a keeper has found out that its cluster is gone."""
ENDING_S = 120.0
"""A driver that was asked to end has so long; asked a second time, no longer."""
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
    arguments: Sequence[str],
    resuming: Callable[[], Sequence[str] | None],
    limits: tuple[int, float],
    keep: Callable[[bool], Keeper | None] = lambda again: None,
) -> int:
    """The exit code of `raylign ARGUMENTS`, whose driver is started again when a signal ended it, or when its cluster
    is gone. resuming: the arguments that resume the run, None while there is none to resume. limits: (times, seconds
    before the first) that the run allows. keep: starts what keeps the cluster, told whether it was there before."""
    budget: FailureBudget | None = None
    command = arguments
    keeper: Keeper | None = None
    kept: list[Keeper] = []
    try:
        while True:
            if keeper is None or not keeper.alive:
                keeper = keep(budget is not None)
                # Workers that outlived a keeper of a joined cluster still write to its scratch: it goes at the end.
                kept = [keeper, *kept] if keeper is not None else kept
            life = Life(command, keeper)
            code = life.run()
            if code is not None:
                return code
            if (again := resuming()) is None:
                print(f"the driver was ended by {life.ended_by} before the run began; start it again", file=sys.stderr)
                return 1
            budget = budget or FailureBudget(*limits)
            wait_s = budget.failed(time.monotonic())
            if wait_s is None:
                print(
                    f"the driver was ended by {life.ended_by}, {budget.spent} times, more than "
                    f"recovery.driver_failures ({limits[0]}); resume with: {' '.join(['raylign', *again])}",
                    file=sys.stderr,
                )
                return 1
            print(f"the driver was ended by {life.ended_by}; resuming from the last commit", file=sys.stderr)
            time.sleep(wait_s)
            command = again
    finally:
        for each in kept:
            each.end()


class Life:
    """One driver from its start to its end, beside the process that keeps its cluster."""

    def __init__(self, command: Sequence[str], keeper: Keeper | None) -> None:
        self._keeper = keeper
        self._asked = 0
        """The signal that asked it to end."""
        self._until = float("inf")
        self.ended_by = ""
        told, self._tell = os.pipe()
        environment = {**os.environ, DRIVER: str(os.getpid())} | ({KEPT: str(told)} if keeper is not None else {})
        # In a group of its own: a terminal's Ctrl-C would otherwise reach it twice, and the second would cut its end
        # short.
        self._driver = subprocess.Popen(
            [sys.executable, "-m", "cluster.cli", *command], env=environment, process_group=0, pass_fds=[told]
        )
        os.close(told)

    def run(self) -> int | None:
        """The exit code that is the run's, None where it is to be resumed."""
        # One that is ignored stays so: `nohup` has a run go on without its terminal.
        heard = [number for number in ASKED if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, self._forward) for number in heard}
        try:
            code = self._watch()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if self._asked and code < 0:
            return 128 + self._asked
        if -code in ASKED:
            return 128 - code
        if code < 0:
            self.ended_by = self.ended_by or signal.Signals(-code).name
        elif code == AGAIN:
            self.ended_by = "a failure at its start or end"
        elif code not in (0, 2) and not self._asked and self._cluster_is_gone():
            self.ended_by = LOST
        return None if self.ended_by else code

    def _cluster_is_gone(self) -> bool:
        """A driver that failed by it may have ended before its keeper knew."""
        keeper = self._keeper
        if keeper is None or keeper.line is None:
            return False
        deadline = time.monotonic() + KNOWN_S
        while keeper.alive and time.monotonic() < deadline:
            time.sleep(WATCH_EVERY_S)
        return not keeper.alive

    def _watch(self) -> int:
        """The driver's exit code, or minus the signal that ended it. It is told where its cluster is, or that there
        will be none, and ended when its cluster is gone."""
        keeper = self._keeper
        while (code := self._driver.poll()) is None:
            alive = keeper if keeper is not None and keeper.alive else None
            if self._tell >= 0 and (alive is None or alive.look(WATCH_EVERY_S)):
                line = None if alive is None else alive.line
                with suppress(BrokenPipeError), os.fdopen(self._tell, "w") as pipe:  # it may end just now
                    pipe.write(line or "")
                self._tell = -1
            elif keeper is not None and alive is None and keeper.line is not None:
                self.ended_by = LOST
                self._driver.kill()
            if time.monotonic() > self._until:
                print("the driver did not end and was killed; the last commit stands", file=sys.stderr)
                self._driver.kill()
            with suppress(subprocess.TimeoutExpired):
                self._driver.wait(WATCH_EVERY_S)
        if self._tell >= 0:
            os.close(self._tell)
        return code

    def _forward(self, number: int, _: object) -> None:
        """Who asks again does not want to wait: the keeper ends what the driver leaves."""
        if self._asked:
            self._until = 0.0
            return
        self._asked, self._until = number, time.monotonic() + ENDING_S
        self._driver.send_signal(number)
