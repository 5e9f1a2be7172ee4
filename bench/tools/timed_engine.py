"""Engines whose decode steps only take time, with log-normal lengths: what the benches of the pool run instead of vLLM.

A length depends on the prompt's group and the sample's index alone: every schedule and every round has the same work.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from actors.engines.interface import Request, StepOutput
from actors.types import FinishReason


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of a response: log-normal about `median`, at most `longest` and the one that ends it."""

    longest: int
    median: float = 100.0
    sigma: float = 0.8

    def __call__(self, group: int, index: int) -> int:
        rng = np.random.default_rng([group, index])
        return int(min(self.longest, self.median * np.exp(self.sigma * rng.standard_normal())) + 1)


class TimedEngine:
    """One token of every running request a step; a request ends at its own length. step_s: seconds of a decode step in
    which so many sequences run. slower: times that."""

    def __init__(self, lengths: Lengths, step_s: Callable[[int], float]) -> None:
        self._lengths, self._step_s = lengths, step_s
        self._left: dict[str, int] = {}
        self.slower = 1.0

    def add_request(self, request: Request) -> None:
        group, index, _ = request.id.split("/")
        self._left[request.id] = self._lengths(int(group), int(index)) - request.made

    def step(self) -> list[StepOutput]:
        time.sleep(self.slower * self._step_s(len(self._left)))
        outputs = []
        for request_id in list(self._left):
            self._left[request_id] -= 1
            done = self._left[request_id] <= 0
            if done:
                del self._left[request_id]
            outputs.append(StepOutput(request_id, (1,), (-1.0,), FinishReason.STOP if done else None))
        return outputs

    def abort(self, request_ids: Sequence[str]) -> None:
        for request_id in request_ids:
            self._left.pop(request_id, None)

    def pressure(self) -> float:
        return 0.0

    def close(self) -> None:
        self._left = {}
