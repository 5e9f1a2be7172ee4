"""A rollout worker in a thread of its own: generations come and go at any time, weights change between two steps.

In: calls from any thread. Out: futures. Waits: the thread sleeps until a call comes when no sequence wants a token or
no version is served, and decodes otherwise; a call waits for at most the decode step under way. Example: A is being
generated, `begin_publish` comes: A stands still, buckets are loaded, `admit` comes: A goes on under the new weights.
Where each second went is counted. Left out: Ray (cluster wraps this class), what a call does (worker.py).
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, TypeVar

from actors.engines.interface import EngineFailed
from actors.rollouts.generation import Generation, RolloutStats
from actors.rollouts.pace import Pace
from actors.rollouts.spans import RolloutSeconds, SpanLog
from actors.rollouts.worker import RolloutWorker, WrongVersion
from actors.types import Prompt, SampleBatch, SamplingSettings

T = TypeVar("T")
Result = tuple[SampleBatch, RolloutStats]


class RolloutServer:
    """Owns the thread, and through it the worker, which `make` builds there."""

    def __init__(
        self, make: Callable[[], RolloutWorker], *, clock: Callable[[], float] = time.monotonic, name: str = "decode"
    ) -> None:
        self._clock = clock
        self._calls: queue.SimpleQueue[Callable[[RolloutWorker], None] | None] = queue.SimpleQueue()
        self._open: dict[int, tuple[Generation, Future[Result]]] = {}
        self.seconds = RolloutSeconds()
        self.spans = SpanLog(clock)
        self._pace: tuple[Pace, float | None] = (Pace(), None)
        """Up to the last step that ended, and when the one under way began: one object, for it is read meanwhile."""
        built: Future[RolloutWorker] = Future()
        self._thread = threading.Thread(target=self._run, args=(make, built), name=name, daemon=True)
        self._thread.start()
        self._worker = built.result()

    @property
    def tokens_made(self) -> int:
        """Response tokens since the start; the one thing that is read from other threads while it decodes."""
        return self._worker.tokens_made

    @property
    def pressure(self) -> float:
        return self._worker.pressure

    @property
    def pace(self) -> Pace:
        """Of its decode steps; may be read while it decodes."""
        pace, began = self._pace
        return pace if began is None else replace(pace, step_s=self._clock() - began)

    @property
    def open(self) -> int:
        """Generations that are under way."""
        return len(self._open)

    def call(self, verb: Callable[[RolloutWorker], T]) -> Future[T]:
        """Run `verb(worker)` between two decode steps."""
        answer: Future[T] = _answer_to_come()
        self._calls.put(lambda worker: _answer(answer, lambda: verb(worker)))
        return answer

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: SamplingSettings,
        version_expected: int | None = None,
        carried: SampleBatch | None = None,
    ) -> Future[Result]:
        """See RolloutWorker.submit. The future ends when the last sample does, or is interrupted."""
        answer: Future[Result] = _answer_to_come()

        def submit(worker: RolloutWorker) -> None:
            try:
                generation = worker.submit(prompts, sampling, version_expected, carried)
            except Exception as error:  # fault boundary: a refused call is its caller's failure, the others go on
                answer.set_exception(error)
                return
            if generation.done:
                answer.set_result(worker.result(generation))
            else:
                self._open[id(generation)] = (generation, answer)

        self._calls.put(submit)
        return answer

    def interrupt(self) -> Future[int]:
        """End every open generation where it stands: their futures bring what they have. How many that were."""

        def stop(worker: RolloutWorker) -> int:
            stopped = worker.interrupt()
            self._finish(worker, stopped)
            return len(stopped)

        return self.call(stop)

    def close(self) -> None:
        """Interrupt, and end the thread and the engine."""
        if self._thread.is_alive():
            self.interrupt()
            self._calls.put(None)
            self._thread.join()

    # --- the thread ---

    def _run(self, make: Callable[[], RolloutWorker], built: Future[RolloutWorker]) -> None:
        try:
            worker = make()
        except BaseException as error:  # fault boundary: the constructor raises it in the caller's thread
            built.set_exception(error)
            return
        built.set_result(worker)
        while self._take_calls(worker):
            if worker.busy and worker.version is not None:
                self._decode(worker)
        worker.close()

    def _take_calls(self, worker: RolloutWorker) -> bool:
        """Do what was called for; with nothing to decode, wait for it. False at the end."""
        waits = not worker.busy or worker.version is None
        while waits or not self._calls.empty():
            began = self._clock()
            call = self._calls.get()
            idle = "wait_prompts" if worker.version is not None else "wait_weights"
            if waits:
                began = self._count(idle, began)
            if call is None:
                return False
            between = worker.version is None
            call(worker)
            if between or worker.version is None:
                self._count("sync", began)
            waits = False
        return True

    def _decode(self, worker: RolloutWorker) -> None:
        began = self._clock()
        self._pace = (worker.pace(self.seconds.generate), began)
        try:
            done = worker.pump()
        except Exception as error:  # fault boundary: what fails is every generation that the step was to advance
            self._pace = (worker.pace(self.seconds.generate), None)
            failed, self._open = self._open, {}
            if not isinstance(error, EngineFailed | WrongVersion):
                error = EngineFailed(f"{type(error).__name__}: {error}")
            for _, answer in failed.values():
                answer.set_exception(error)
            return
        self._count("generate", began)
        self.seconds.engine = worker.engine_seconds
        self._pace = (worker.pace(self.seconds.generate), None)
        self._finish(worker, done)

    def _finish(self, worker: RolloutWorker, done: Sequence[Generation]) -> None:
        for generation in done:
            _, answer = self._open.pop(id(generation))
            answer.set_result(worker.result(generation))

    def _count(self, what: str, began: float) -> float:
        now = self._clock()
        setattr(self.seconds, what, getattr(self.seconds, what) + now - began)
        self.spans.add(what, began, now)
        return now


def _answer_to_come() -> Future[Any]:
    """A future that nobody can cancel: who stops waiting must not end the thread that answers."""
    answer: Future[Any] = Future()
    answer.set_running_or_notify_cancel()
    return answer


def _answer(answer: Future[T], verb: Callable[[], T]) -> None:
    try:
        found = verb()
    except Exception as error:  # fault boundary: an error belongs to who called
        answer.set_exception(error)
    else:
        answer.set_result(found)
