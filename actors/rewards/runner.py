"""Runs reward functions out of process and sums them; a failure costs its sample a score and nothing else.

In: `RewardSpec`s, then texts and data of a batch. Out: a `ScoreBatch`: each part and the weighted sum, NaN and an error
naming function and sample where there is no score. A function that raises, hangs, returns no number, or takes its
process down is survived: the process is killed and started again, and the samples after the guilty one go on. Left
out: decoding, reward models and penalties (scorer.py), and how many failures a run may have (the driver).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from actors.rewards.process import ProcessGone, RewardProcess
from actors.rewards.spec import RewardSpec, resolve_function
from actors.types import ScoreBatch

ASYNC_WIDTH = 64
"""How many calls of an async function run at a time."""
ASYNC_GRACE_S = 1.0
"""The child times awaited calls itself; the parent steps in this much later, when a call blocks the event loop."""
SEND_TIMEOUT_S = 60.0


class RewardError(ValueError):
    """Reward functions that cannot be loaded, all of them."""


class RewardRunner:
    """One reward process for all functions, called in turn. One caller, one thread; `close` leaves no process.

    start_timeout_s bounds importing all functions; memory_limit_bytes is the process's address space (RLIMIT_AS).
    max_restarts bounds, per function and batch, how many samples may take the process down or hang: then the function
    is given up for the rest of the batch, so a batch takes at most max_restarts timeouts too long.
    """

    def __init__(
        self,
        specs: Sequence[RewardSpec],
        *,
        base: Path | None = None,
        memory_limit_bytes: int | None = None,
        start_timeout_s: float = 120.0,
        max_restarts: int = 8,
    ) -> None:
        names = [spec.name for spec in specs]
        if len(set(names)) != len(names):
            raise ValueError(f"reward names must differ, got {', '.join(names)}")
        self.specs = tuple(specs)
        self._memory_limit_bytes = memory_limit_bytes
        self._start_timeout_s = start_timeout_s
        self._max_restarts = max_restarts
        self._process: RewardProcess | None = None
        self._kinds: list[dict[str, bool]] = []
        self.restarts = 0
        self._references = self._resolve(base)
        self._ensure_process()

    def __enter__(self) -> RewardRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def score(self, prompts: Sequence[str], responses: Sequence[str], data: Sequence[Mapping[str, Any]]) -> ScoreBatch:
        """Every function on every sample; values are the weighted sums."""
        count = len(responses)
        if len(prompts) != count or len(data) != count:
            raise ValueError(f"{len(prompts)} prompts, {count} responses and {len(data)} data rows must be as many")
        values = np.zeros(count)
        parts: dict[str, np.ndarray] = {}
        reasons: dict[int, list[str]] = {}
        for index, spec in enumerate(self.specs):
            column, errors = self._score_function(index, (list(prompts), list(responses), list(data)))
            parts[spec.name] = column
            if spec.weight:
                values += spec.weight * column
                for row, reason in errors.items():
                    full = f"reward {spec.name!r} ({spec.function}), sample {row}: {reason}"
                    reasons.setdefault(row, []).append(full)
        return ScoreBatch(values, parts, {row: "; ".join(found) for row, found in sorted(reasons.items())})

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process = None

    def _score_function(self, index: int, columns: tuple[list, list, list]) -> tuple[np.ndarray, dict[int, str]]:
        """Scores and errors of one function. Rows that a dead process left unscored are sent again without the
        guilty one: the first unscored row where calls run one at a time. Where async calls ran side by side any of
        the first ASYNC_WIDTH may be guilty, so these (`careful` of them) go one at a time."""
        kind = self._kinds[index]
        outcomes: dict[int, tuple[float | None, str | None]] = {}
        pending = list(range(len(columns[0])))
        careful = deaths = 0
        while pending:
            width = ASYNC_WIDTH if kind["asynchronous"] and not careful else 1
            rows = pending[:careful] if careful else pending
            failure = self._attempt(index, rows, columns, width, outcomes)
            pending = [row for row in pending if row not in outcomes]
            left = [row for row in rows if row not in outcomes]
            if failure is None or not left:
                careful = 0
                continue
            deaths += 1
            if kind["batched"]:
                outcomes |= {row: (None, f"the batch of {len(rows)} failed: {failure}") for row in left}
            elif width > 1:
                careful = min(len(left), width)
            else:
                outcomes[left[0]] = (None, failure)
                careful = len(left) - 1 if careful else 0
            if deaths >= self._max_restarts:
                given_up = f"not tried: the function took its process down or hung {deaths} times in this batch"
                outcomes |= {row: (None, given_up) for row in pending if row not in outcomes}
            pending = [row for row in pending if row not in outcomes]
        column = np.array([np.nan if (v := outcomes[row][0]) is None else v for row in range(len(columns[0]))], float)
        return column, {row: reason for row, (_, reason) in sorted(outcomes.items()) if reason is not None}

    def _attempt(
        self, index: int, rows: list[int], columns: tuple, width: int, outcomes: dict[int, tuple]
    ) -> str | None:
        """One request for `rows`; fills `outcomes` as frames arrive. None when all came, else why they stopped."""
        spec = self.specs[index]
        grace_s = ASYNC_GRACE_S if self._kinds[index]["asynchronous"] else 0.0
        sent = tuple([column[row] for row in rows] for column in columns)
        try:
            process = self._ensure_process()
            process.send(SEND_TIMEOUT_S, "score", index, rows, sent, spec.timeout_s, width)
            while "done" not in (frame := process.receive(spec.timeout_s + grace_s)):
                outcomes[frame["row"]] = (frame["value"], frame["error"])
        except ProcessGone as gone:
            self.close()
            return str(gone)
        except RewardError as error:  # loaded before, fails to load now: no use in trying the next row
            outcomes |= {row: (None, f"cannot be loaded again: {error}") for row in rows if row not in outcomes}
        except BaseException:  # an interrupt leaves a half-read reply: the next batch must not read on in it
            self.close()
            raise
        return None

    def _ensure_process(self) -> RewardProcess:
        """The live process, started and loaded if need be. RewardError naming every function that does not load."""
        if self._process is not None and self._process.alive:
            return self._process
        self.close()
        process = RewardProcess(self._memory_limit_bytes)
        if self._kinds:
            self.restarts += 1
        path = [entry or os.getcwd() for entry in sys.path]
        specs = [(ref, s.batched, dict(s.args)) for ref, s in zip(self._references, self.specs, strict=True)]
        try:
            process.send(SEND_TIMEOUT_S, "load", specs, path)
            loaded = process.receive(self._start_timeout_s)
        except ProcessGone as gone:
            named = ", ".join(spec.function for spec in self.specs)
            raise RewardError(f"loading the reward functions {named}: {gone}") from gone
        if loaded["problems"]:
            process.kill()
            raise RewardError(self._report({int(i): reason for i, reason in loaded["problems"].items()}))
        self._process, self._kinds = process, loaded["kinds"]
        return process

    def _resolve(self, base: Path | None) -> list[str]:
        references, problems = [], {}
        for index, spec in enumerate(self.specs):
            try:
                references.append(resolve_function(spec.function, base))
            except ValueError as error:
                problems[index] = str(error)
        if problems:
            raise RewardError(self._report(problems))
        return references

    def _report(self, problems: Mapping[int, str]) -> str:
        lines = [f"{self.specs[i].name!r} ({self.specs[i].function}): {reason}" for i, reason in problems.items()]
        title = f"{len(lines)} reward {'function' if len(lines) == 1 else 'functions'} cannot be used:"
        return "\n  ".join([title, *lines])
