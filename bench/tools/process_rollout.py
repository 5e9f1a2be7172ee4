"""A rollout worker in a process of its own, over a scripted engine: what a soak kills a thousand of.

In: a name and how long a decode step takes. Out: a RolloutHandle whose process may die at any moment. Its parts are the
real RolloutServer and RolloutWorker; only the engine is scripted and Ray is left out, so that a life starts in
milliseconds.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import Future
from multiprocessing.connection import Connection
from typing import Any

from actors.rollouts.server import RolloutServer
from actors.rollouts.worker import RolloutWorker
from cluster.pool.members.handle import WorkerError, WorkerIdentity, WorkerLost, WorkerPulse
from cluster.pool.members.ticket import Ticket
from cluster.roles.rollout import probe_logprobs, pulse_of
from tests.fixtures.scripted_engine import ScriptedEngine

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["bench.tools.process_rollout"])


def script(request: Any) -> list[int]:
    """Token t of sample i of group g is 100 g + 10 i + t, eight long."""
    group, index, _ = request.id.split("/")
    return [100 * int(group) + 10 * int(index) + t for t in range(8)]


def serve(pipe: Connection, step_s: float) -> None:
    """The process: calls come with a number, answers go with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    server = RolloutServer(lambda: RolloutWorker(ScriptedEngine(script, on_step=lambda step: time.sleep(step_s))))
    lock = threading.Lock()

    def answer(number: int, future: Future[Any]) -> None:
        error = future.exception()
        with lock:
            pipe.send((number, error is None, future.result() if error is None else f"{type(error).__name__}: {error}"))

    while True:
        try:
            number, verb, argument = pipe.recv()
        except EOFError:
            os._exit(0)
        if verb == "generate":
            ticket: Ticket = argument
            future = server.generate(ticket.prompts, ticket.sampling, ticket.version, ticket.carried)
        elif verb == "interrupt":
            future = server.interrupt()
        elif verb == "pulse":
            future = Future()
            future.set_result(pulse_of(server))
        else:
            future = server.call(lambda worker, verb=verb, argument=argument: _do(worker, verb, argument))
        future.add_done_callback(lambda done, number=number: answer(number, done))


def _do(worker: RolloutWorker, verb: str, argument: Any) -> Any:
    return probe_logprobs(worker, argument) if verb == "probe" else getattr(worker, verb)(argument)


class ProcessRollout:
    """RolloutHandle over one such process."""

    def __init__(self, name: str, step_s: float = 0.005) -> None:
        self.name = name
        self._pipe, theirs = PROCESSES.Pipe()
        self.process = PROCESSES.Process(target=serve, args=(theirs, step_s), daemon=True)
        self.process.start()
        theirs.close()
        self._calls: dict[int, Future[Any]] = {}
        self._made = 0
        self._gone = False
        self._lock = threading.Lock()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            try:
                number, well, value = self._pipe.recv()
            except (EOFError, OSError):
                break
            call = self._calls.pop(number)
            if well:
                call.set_result(value)
            else:
                call.set_exception(WorkerError(value))
        with self._lock:
            self._gone = True
            waiting, self._calls = list(self._calls.values()), {}
        for call in waiting:
            call.set_exception(WorkerLost("its process is gone"))

    async def _call(self, verb: str, argument: Any = None) -> Any:
        call: Future[Any] = Future()
        call.set_running_or_notify_cancel()
        with self._lock:
            if self._gone:
                raise WorkerLost("its process is gone")
            number, self._made = self._made, self._made + 1
            self._calls[number] = call
            try:
                self._pipe.send((number, verb, argument))
            except OSError as error:
                self._calls.pop(number)
                raise WorkerLost("its process is gone") from error
        return await asyncio.wrap_future(call)

    async def start(self) -> WorkerIdentity:
        await self._call("pulse")
        return WorkerIdentity("scripted", "float32", "none", "none")

    async def generate(self, ticket: Ticket) -> tuple[Any, Any, Any]:
        batch, stats = await self._call("generate", ticket)
        return batch, batch.take(range(min(ticket.recorded, len(batch)))), stats

    async def interrupt(self) -> int:
        return await self._call("interrupt")

    async def pulse(self) -> WorkerPulse:
        return await self._call("pulse")

    async def stop(self) -> None:
        self.process.kill()
        await asyncio.to_thread(self.process.join)
        self._pipe.close()

    def __getattr__(self, verb: str) -> Any:
        """Calls about weights: adopt, begin_publish, connect, receive, finish_publish, probe, admit, sleep."""
        return lambda argument=None: self._call(verb, argument)
