"""A run's checkpoints, of which one may be on its way to disk while training goes on.

In: what fills a staging folder, and says when the last of its files is written. Out: commits (checkpoint.py), each of
them whole or absent. Who waits for whom: `begin` for the commit before; nobody for one under way. One failed write is
told and the run goes on with the commits it has; a second in a row, or one that nothing will follow, ends it. Left out:
what a checkpoint holds (cluster/training/job.py).
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cluster.errors import LearnerLost, RunFailed
from cluster.run.checkpoints import checkpoint
from cluster.run.records.metrics import EventsWriter

POLL_S = 0.2
Written = Callable[[], Mapping[str, Mapping[str, Any]] | None]
"""Size and hash of files that are written and synced, by their path in the stage; None while one is not."""


class Commits:
    """tell: hears of a checkpoint that could not be written. timeout_s: for writing one. committed: called after each,
    beside training."""

    def __init__(
        self,
        folder: Path,
        events: EventsWriter,
        tell: Callable[[str], None],
        timeout_s: float,
        committed: Callable[[], None] = lambda: None,
    ) -> None:
        self._folder = folder
        self._events = events
        self._tell = tell
        self._timeout_s = timeout_s
        self._committed = committed
        self._thread: threading.Thread | None = None
        self._dropped = threading.Event()
        self._failure: Exception | None = None
        self._failed_in_a_row = 0

    def begin(self, step: int, fill: Callable[[Path], None], written: Written, keep: tuple[int, set[int]]) -> None:
        """Fill a stage now, commit it when all is written. keep: how many checkpoints, and which steps' whatever their
        age."""
        self.wait(last=False)
        began = time.monotonic()
        stage = checkpoint.open_stage(self._folder, step)
        try:
            fill(stage)
        except OSError as error:
            shutil.rmtree(stage, ignore_errors=True)
            self._failed(step, error, last=False)
            return
        except BaseException:
            shutil.rmtree(stage, ignore_errors=True)
            raise
        stall_s = time.monotonic() - began
        self._dropped.clear()

        def finish() -> None:
            try:
                self._commit(step, stage, written, keep, began, stall_s)
            except Exception as error:  # fault boundary: raised for who waits for this commit
                self._failure = error
                self._step = step
            finally:
                shutil.rmtree(stage, ignore_errors=True)

        self._thread = threading.Thread(target=finish, name="commit", daemon=True)
        self._thread.start()

    def wait(self, last: bool) -> None:
        """For the commit under way. last: nothing will be committed after it, so that its failure is the run's."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        failure, self._failure = self._failure, None
        if failure is None:
            return
        if isinstance(failure, LearnerLost):
            raise failure
        self._failed(self._step, failure, last)

    def drop(self) -> None:
        """Give up a commit that is not complete: who was to write it is gone."""
        self._dropped.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._failure = None

    def _commit(
        self, step: int, stage: Path, written: Written, keep: tuple[int, set[int]], began: float, stall_s: float
    ) -> None:
        while (facts := written()) is None:
            if self._dropped.wait(POLL_S):
                return
            if time.monotonic() - began > self._timeout_s:
                raise RunFailed(f"writing the checkpoint of step {step}: not done within {self._timeout_s:g} s")
        checkpoint.commit(self._folder, step, stage, facts)
        checkpoint.prune(self._folder, *keep)
        self._failed_in_a_row = 0
        took = round(time.monotonic() - began, 2)
        self._events.write("checkpoint", f"committed step {step}", step, seconds=took, stall_seconds=round(stall_s, 3))
        try:
            self._committed()
        except Exception as error:  # fault boundary: the commit stands here, and is sent along with the next
            text = f"the checkpoint of step {step} could not be copied to where the run is kept ({error})"
            self._events.write("damaged", text)
            self._tell(f"{text}; the run goes on, and sends it with the next")

    def _failed(self, step: int, error: Exception, last: bool) -> None:
        self._failed_in_a_row += 1
        text = f"the checkpoint of step {step} could not be written ({error})"
        self._events.write("damaged", text)
        if last or self._failed_in_a_row > 1:
            raise RunFailed(f"{text}; the commit before it stands: make room and resume") from error
        self._tell(f"{text}; the run goes on, the commit before it stands")
