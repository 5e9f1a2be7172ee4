"""The parent's hold on one reward process: start, send, receive within a deadline, kill.

In: messages for child.py. Out: its replies, or ProcessGone saying how it ended or that it hung. Started as a fresh
interpreter in its own process group: no fork of the caller's threads, and a kill takes what a reward function itself
started. Left out: which sample is to blame and whether to start again (runner.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from actors.rewards.child import HEADER
from actors.rewards.spec import BATCHED_MARK

LIVENESS_CHECK_S = 0.5
"""How often a wait looks whether the process is alive: a grandchild may hold the reply pipe open after its death."""


class ProcessGone(RuntimeError):
    """The reward process died, or hung and was killed. The message says how."""


class RewardProcess:
    """One child. After ProcessGone it is dead and collected; make another."""

    def __init__(self, memory_limit_bytes: int | None = None) -> None:
        child_requests, requests = os.pipe()
        replies, child_replies = os.pipe()
        child_lifeline, lifeline = os.pipe()
        theirs = (child_requests, child_replies, child_lifeline)
        # Kept as file objects: they close when this object goes, and the child ends with its lifeline.
        ours = (requests, replies, lifeline)
        self._requests, self._replies, self._lifeline = (os.fdopen(fd, "rb+", 0) for fd in ours)
        script = str(Path(__file__).with_name("child.py"))
        arguments = [*map(str, theirs), str(memory_limit_bytes or 0), BATCHED_MARK]
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", script, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=2,
                pass_fds=theirs,
                start_new_session=True,
            )
        finally:
            for fd in theirs:
                os.close(fd)
        os.set_blocking(requests, False)
        os.set_blocking(replies, False)
        self._buffer = bytearray()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def send(self, timeout_s: float, *message: Any) -> None:
        """Write one request; ProcessGone if the child does not take it in time."""
        payload = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
        view = memoryview(HEADER.pack(len(payload)) + payload)
        deadline = time.monotonic() + timeout_s
        while view:
            self._wait(self._requests.fileno(), select.POLLOUT, deadline, timeout_s)
            try:
                view = view[os.write(self._requests.fileno(), view) :]
            except BrokenPipeError:
                self._raise_dead()

    def receive(self, timeout_s: float) -> dict[str, Any]:
        """The next frame; ProcessGone if none comes within `timeout_s`, or the child dies first."""
        deadline = time.monotonic() + timeout_s
        while True:
            if len(self._buffer) >= HEADER.size:
                end = HEADER.size + HEADER.unpack(self._buffer[: HEADER.size])[0]
                if len(self._buffer) >= end:
                    frame = json.loads(self._buffer[HEADER.size : end])
                    del self._buffer[:end]
                    return frame
            self._wait(self._replies.fileno(), select.POLLIN, deadline, timeout_s)
            chunk = os.read(self._replies.fileno(), 1 << 16)
            if not chunk:
                self._raise_dead()
            self._buffer += chunk

    def _wait(self, fd: int, event: int, deadline: float, timeout_s: float) -> None:
        poller = select.poll()
        poller.register(fd, event)
        while True:
            left = deadline - time.monotonic()
            if poller.poll(max(0.0, min(left, LIVENESS_CHECK_S)) * 1000):
                return
            if self._process.poll() is not None:
                self._raise_dead()
            if left <= 0:
                self.kill()
                raise ProcessGone(f"took longer than {timeout_s:g} s and was killed")

    def _raise_dead(self) -> None:
        try:
            code = self._process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:  # it closed its pipe but lives on
            self.kill()
            raise ProcessGone("closed its pipe and was killed") from None
        self.kill()
        if code < 0:
            hint = ", perhaps out of memory" if code == -signal.SIGKILL else ""
            raise ProcessGone(f"its process was ended by {signal.Signals(-code).name}{hint}")
        raise ProcessGone(f"its process exited with code {code}")

    def kill(self) -> None:
        """End the child and everything in its process group, and collect it. Safe to call again."""
        with contextlib.suppress(ProcessLookupError):  # the group is already gone
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._requests, self._replies, self._lifeline):
            pipe.close()
