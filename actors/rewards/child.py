"""The reward process: loads reward functions and calls them, one request at a time. Run as a script, not imported.

In: length-prefixed pickles on the request pipe (load, score). Out: length-prefixed JSON frames on the reply pipe: one
a sample as soon as it is scored, so that the parent knows which sample a hang or a crash belongs to. Standard library
only, and little of it: this file's start-up is paid at every restart. Left out: timeouts of blocking calls and
restarts (runner.py decides), weights and sums.

It cannot outlive its parent: the kernel signals its process group when the parent's end of the lifeline pipe closes,
also while a reward function holds the interpreter. Whatever functions print goes to stderr.
"""

from __future__ import annotations

import fcntl
import importlib
import importlib.util
import inspect
import json
import math
import os
import pickle
import resource
import select
import struct
import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio

HEADER = struct.Struct(">Q")


class Child:
    """Holds the loaded functions; `serve` answers requests until the parent closes the pipe."""

    def __init__(self, request_fd: int, reply_fd: int, batched_mark: str) -> None:
        self._requests = os.fdopen(request_fd, "rb")
        self._reply_fd = reply_fd
        self._batched_mark = batched_mark
        self._functions: list[tuple[Callable, bool, dict]] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    def serve(self) -> None:
        while header := self._requests.read(HEADER.size):
            verb, *arguments = pickle.loads(self._requests.read(HEADER.unpack(header)[0]))
            getattr(self, f"do_{verb}")(*arguments)

    def reply(self, **message: Any) -> None:
        payload = json.dumps(message).encode()
        view = memoryview(HEADER.pack(len(payload)) + payload)
        while view:
            view = view[os.write(self._reply_fd, view) :]

    def do_load(self, specs: list[tuple[str, bool | None, dict]], path: list[str]) -> None:
        """Import every function; reply with what each is, or with every problem."""
        sys.path[:] = path
        problems: dict[int, str] = {}
        kinds = []
        for index, (reference, batched, args) in enumerate(specs):
            try:
                function = load_function(reference)
                batched = hasattr(function, self._batched_mark) if batched is None else batched
                check_signature(function, args)
            except (Exception, SystemExit) as error:
                problems[index] = describe(error)
                continue
            self._functions.append((function, batched, args))
            kinds.append({"batched": batched, "asynchronous": is_async(function)})
        self.reply(problems=problems, kinds=kinds)

    def do_score(
        self, index: int, rows: list[int], columns: tuple[list, list, list], timeout_s: float, width: int
    ) -> None:
        """Score `rows` (numbers the parent gave to the samples in `columns`); frames, then a last one with done."""
        function, batched, args = self._functions[index]
        if batched:
            self._score_batch(function, args, rows, columns, timeout_s)
        elif is_async(function):
            self._run(self._score_concurrently(function, args, rows, columns, timeout_s, width))
        else:
            for row, sample in zip(rows, zip(*columns, strict=True), strict=True):
                try:
                    outcome = number(function(*sample, **args))
                except (Exception, SystemExit) as error:
                    outcome = None, describe(error)
                self.reply(row=row, value=outcome[0], error=outcome[1])
        self.reply(done=True)

    def _score_batch(self, function: Callable, args: dict, rows: list[int], columns: tuple, timeout_s: float) -> None:
        try:
            if is_async(function):
                result = self._run(limited(function(*columns, **args), timeout_s))
            else:
                result = function(*columns, **args)
            values = list(result)
            if len(values) != len(rows):
                raise ValueError(f"returned {len(values)} scores for {len(rows)} samples")
        except (Exception, SystemExit) as error:
            for row in rows:
                self.reply(row=row, value=None, error=f"the batch of {len(rows)} failed: {describe(error)}")
            return
        for row, item in zip(rows, values, strict=True):
            value, problem = number(item)
            self.reply(row=row, value=value, error=problem)

    async def _score_concurrently(
        self, function: Callable, args: dict, rows: list[int], columns: tuple, timeout_s: float, width: int
    ) -> None:
        """At most `width` calls at a time, begun in order."""
        import asyncio

        slots = asyncio.Semaphore(width)

        async def one(row: int, sample: tuple) -> None:
            async with slots:
                try:
                    outcome = number(await limited(function(*sample, **args), timeout_s))
                except (Exception, SystemExit) as error:
                    outcome = None, describe(error)
                self.reply(row=row, value=outcome[0], error=outcome[1])

        await asyncio.gather(*(one(r, s) for r, s in zip(rows, zip(*columns, strict=True), strict=True)))

    def _run(self, coroutine: Any) -> Any:
        """On one event loop for the life of the process, so that functions may keep connections."""
        import asyncio

        if self._loop is None:
            self._loop = asyncio.new_event_loop()
        return self._loop.run_until_complete(coroutine)


async def limited(awaitable: Any, timeout_s: float) -> Any:
    import asyncio

    try:
        return await asyncio.wait_for(awaitable, timeout_s)
    except TimeoutError as error:
        raise TimeoutError(f"took longer than {timeout_s:g} s") from error


def load_function(reference: str) -> Callable:
    where, _, name = reference.rpartition(":")
    if where.endswith(".py"):
        sys.path.append(os.path.dirname(where))
        module_name = "reward_file_" + "".join(c if c.isalnum() else "_" for c in where)
        spec = importlib.util.spec_from_file_location(module_name, where)
        if spec is None or spec.loader is None:
            raise ImportError(f"{where} cannot be loaded as a Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(where)
    if not hasattr(module, name):
        raise AttributeError(f"{where} has no function {name!r}")
    function = getattr(module, name)
    if not callable(function):
        raise TypeError(f"{reference} is not a function")
    return function


def check_signature(function: Callable, args: dict) -> None:
    """TypeError unless it can be called as fn(prompt, response, data, **args)."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # some C functions publish no signature; the first call will tell
        return
    try:
        signature.bind("prompt", "response", {}, **args)
    except TypeError as error:
        raise TypeError(f"cannot be called as fn(prompt, response, data{', ...' if args else ''}): {error}") from error


def is_async(function: Callable) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def number(value: Any) -> tuple[float | None, str | None]:
    """(score, None), or (None, why it is none)."""
    if value is None or isinstance(value, str | bytes):
        return None, f"returned {value!r:.80}, not a number"
    try:
        score = float(value)
    except (TypeError, ValueError):
        return None, f"returned {value!r:.80}, not a number"
    return (score, None) if math.isfinite(score) else (None, f"returned {score}")


def describe(error: BaseException) -> str:
    """ValueError: what it said (file.py:12)."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = "" if frame.filename == __file__ else f" ({os.path.basename(frame.filename)}:{frame.lineno})"
    return f"{type(error).__name__}: {error}{place}"


def hold_lifeline(fd: int) -> None:
    """SIGIO, whose default action ends a process, to the whole group when the parent's end closes."""
    fcntl.fcntl(fd, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)
    poller = select.poll()
    poller.register(fd, 0)
    if poller.poll(0):  # it closed before the signal was armed
        os._exit(1)


def main() -> None:
    request_fd, reply_fd, lifeline_fd, memory_limit_bytes = map(int, sys.argv[1:5])
    for fd in (request_fd, reply_fd, lifeline_fd):
        os.set_inheritable(fd, False)
    hold_lifeline(lifeline_fd)
    if memory_limit_bytes:
        resource.setrlimit(resource.RLIMIT_AS, (memory_limit_bytes, memory_limit_bytes))
    Child(request_fd, reply_fd, sys.argv[5]).serve()


if __name__ == "__main__":
    main()
