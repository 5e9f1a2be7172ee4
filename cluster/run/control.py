"""Asking a running driver for something: requests and answers as small files in its run directory.

In: a verb with its arguments, from any process that sees the directory. Out: the driver's answer, one sentence, or its
refusal. Files are renamed into place whole, so neither side reads half of one. Who waits for whom: the caller waits for
its answer with a deadline; the driver's thread looks every quarter of a second and waits for nobody. Left out: what the
verbs do (whoever serves them).
"""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from cluster.errors import RunFailed, UserError
from cluster.run.directory import RunDirectory, write_atomic

FOLDER = "control"
LOOK_EVERY_S = 0.25
ANSWER_S = 30.0
"""A driver that serves requests answers within a second; this is for one that starts or is stopped."""

Verb = Callable[..., str]


def ask(run: RunDirectory, verb: str, *, timeout_s: float = ANSWER_S, **arguments: Any) -> str:
    """The driver's answer. UserError with its refusal, or when no driver answers."""
    if not run.in_use():
        raise UserError(f"no driver works in {run}; start it, or name the run directory of one that does")
    folder = run.root / FOLDER
    name = f"{time.time_ns()}-{uuid.uuid4().hex}"  # in the order of asking
    request, answer = folder / f"{name}.request.json", folder / f"{name}.answer.json"
    try:
        folder.mkdir(exist_ok=True)
        write_atomic(request, json.dumps({"verb": verb, "arguments": arguments, "pid": os.getpid()}))
    except OSError as error:
        raise UserError(f"cannot ask the driver in {run}: {error}; ask as a user who may write there") from error
    deadline = time.monotonic() + timeout_s
    wrong = f"the driver in {run} gave no answer within {timeout_s:g} s; see its log, and ask again"
    while time.monotonic() < deadline:
        gone = not run.in_use()  # before the look: a driver's last answer comes before it lets go of the run
        if answer.is_file():
            found = json.loads(answer.read_text())
            answer.unlink()
            if found["refused"]:
                raise UserError(found["text"])
            return found["text"]
        if gone:
            wrong = f"the driver in {run} ended before it answered; see its log"
            break
        time.sleep(LOOK_EVERY_S / 5)
    request.unlink(missing_ok=True)
    raise UserError(wrong)


class ControlServer:
    """Answers requests in a thread of its own while the block runs. verbs: by name; a UserError is a refusal."""

    def __init__(self, run: RunDirectory, verbs: Mapping[str, Verb]) -> None:
        self._folder = run.root / FOLDER
        self._verbs = verbs
        self._none = f"has nothing of this name; it has {', '.join(verbs) or 'nothing to ask for'}"
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="control", daemon=True)

    def __enter__(self) -> ControlServer:
        self._folder.mkdir(exist_ok=True)
        for old in self._folder.glob("*.json"):  # of a driver that died before it answered
            old.unlink()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._closing.set()
        self._thread.join()
        self._verbs, self._none = {}, "has come to its end"
        self.look()  # who asked since the last look hears so at once

    def look(self) -> None:
        """Answer what has come."""
        for request in sorted(self._folder.glob("*.request.json")):
            try:
                asked = json.loads(request.read_text())
            except FileNotFoundError:  # whoever asked has given up
                continue
            text, refused = self._answer(asked["verb"], asked["arguments"])
            request.unlink(missing_ok=True)
            answer = request.with_name(request.name.replace(".request.", ".answer."))
            write_atomic(answer, json.dumps({"text": text, "refused": refused}))

    def _answer(self, verb: str, arguments: Mapping[str, Any]) -> tuple[str, bool]:
        if verb not in self._verbs:
            return f"{verb}: this run {self._none}", True
        try:
            return self._verbs[verb](**arguments), False
        except Exception as error:  # fault boundary: who asked hears of it; the run and this thread go on
            return str(error) if isinstance(error, (UserError, RunFailed)) else f"{verb} failed: {error!r}", True

    def _serve(self) -> None:
        while not self._closing.wait(LOOK_EVERY_S):
            self.look()
