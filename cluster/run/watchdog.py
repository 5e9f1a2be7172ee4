"""The last deadline: a run that has not moved for longer than any of its waits may take is stuck as nobody foresaw.

In: a word whenever the run moves from one phase to the next. Out: once it has not for too long, a call with the phase
and the seconds, from a thread of its own. Every wait has its own deadline, so this one is for what has none: a lock, a
library, a disk. Left out: what is then done (cluster/roles/stacks.py, cluster/driver.py).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType


class Watchdog:
    """stuck: (what the run was last heard to do, seconds since)."""

    def __init__(
        self, deadline_s: float, stuck: Callable[[str, float], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._deadline_s = deadline_s
        self._stuck = stuck
        self._clock = clock
        self._heard: tuple[str, float] = ("starting", clock())
        self._ended = threading.Event()

    def hear(self, what: str) -> None:
        self._heard = (what, self._clock())

    def look(self) -> bool:
        """Whether it is time: the call was made."""
        what, since = self._heard
        waited = self._clock() - since
        if waited <= self._deadline_s:
            return False
        self._stuck(what, waited)
        return True

    def __enter__(self) -> Watchdog:
        self.hear("starting")
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(min(1.0, self._deadline_s / 4)):
            if self.look():
                return
