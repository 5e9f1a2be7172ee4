"""One worker of four that decodes ten times slower: what a step takes with it and without it. The real pool and its
policy; simulated latencies.

The same batch of prompts with long-tailed lengths is generated in every step, by engines whose decode step takes
`base + each x sequences` seconds: on a GPU that is not full the first part is all, on two cores the second is most.
First nobody is slow, then one is, until it has rested, come back and been found slow again. Nothing is learned
meanwhile, so all of a step is generation. The last row is a step in which nobody is suspected.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from actors.engine import Request, StepOutput
from actors.types import FinishReason, PolicyVersion, Prompt, SamplingSettings
from bench.common import table
from cluster.pool.members import Deadlines
from cluster.pool.pool import RolloutPool
from cluster.pool.recovery import RecoveryLimits
from tests.fixtures.local_rollout import local_start

WORKERS, BATCH, SAMPLES, SLOWER = 4, 16, 4, 10.0
MEDIAN, SIGMA, LONGEST = 100, 0.8, 400
CALM_STEPS, MOST_STEPS = 4, 20
SAMPLING = SamplingSettings(max_tokens=LONGEST + 1, samples_per_prompt=SAMPLES)
PROMPTS = [Prompt(id=g, token_ids=(1,), group=g) for g in range(BATCH)]


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of a decode step: base, and more for each sequence."""

    name: str
    base: float
    each: float


COSTS = (Cost("a step costs 10 ms", 0.010, 0.0), Cost("a step costs 4 ms and 1 a sequence", 0.004, 0.001))


def length(group: int, index: int) -> int:
    rng = np.random.default_rng([group, index])
    return int(min(LONGEST, MEDIAN * np.exp(SIGMA * rng.standard_normal())) + 1)


class CostlyEngine:
    """One token of every running request a step; a request ends at its own length. slower: times its cost."""

    def __init__(self, cost: Cost) -> None:
        self._cost = cost
        self._left: dict[str, int] = {}
        self.slower = 1.0

    def add_request(self, request: Request) -> None:
        group, index, _ = request.id.split("/")
        self._left[request.id] = length(int(group), int(index)) - request.made

    def step(self) -> list[StepOutput]:
        time.sleep(self.slower * (self._cost.base + self._cost.each * len(self._left)))
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


class Bench:
    """A pool of one cost; samples: that came, of every step."""

    def __init__(self, cost: Cost, limits: RecoveryLimits) -> None:
        self.told: list[tuple[float, str, str]] = []
        self.engines: dict[str, CostlyEngine] = {}
        self.samples = self.steps = 0

        def engine(name: str) -> CostlyEngine:
            self.engines[name] = CostlyEngine(cost)
            return self.engines[name]

        self.pool = RolloutPool(
            local_start(engine, {}),
            WORKERS,
            put=lambda value: value,
            sequences=64,
            deadlines=Deadlines(60.0, 600.0, 60.0),
            limits=limits,
            tell=lambda kind, text: self.told.append((time.monotonic(), kind, text)),
        )
        self.pool.adopt(PolicyVersion(0, "disk"))

    def step(self) -> float:
        """Seconds of one; every sample must come, whole and once."""
        began = time.monotonic()
        found = self.pool.generate(PROMPTS, SAMPLING, 0)
        took = time.monotonic() - began
        came = [(s.group, s.sample_index, len(s.token_ids)) for chunk in found.chunks for s in chunk]
        assert sorted(came) == [(g, i, length(g, i)) for g in range(BATCH) for i in range(SAMPLES)]
        self.samples += len(came)
        self.steps += 1
        return took

    def events(self, *kinds: str, since: float) -> list[tuple[float, str]]:
        return [(at, text) for at, kind, text in self.told if kind in kinds and at >= since]


def measure(cost: Cost) -> list[list[object]]:
    """Rows of the table: what the step was, its seconds, their ratio to a calm one's."""
    one = Bench(cost, RecoveryLimits())
    one.step()
    calm_s = statistics.median(one.step() for _ in range(CALM_STEPS))
    one.engines["rollout-1"].slower = SLOWER
    slow_from = time.monotonic()
    first_s = one.step()
    found_s = one.events("suspect", since=slow_from)[0][0] - slow_from
    resting, back = [], None
    while back is None and one.steps < MOST_STEPS:
        began = time.monotonic()
        took = one.step()
        if again := one.events("suspect", since=began):
            back, again_s = took, again[0][0] - began
        elif not one.events("worker", since=began):  # it came back in this one, to an empty share
            resting.append(took)
    one.pool.close()
    return [
        [cost.name, "nobody is slow", calm_s, 1.0],
        [cost.name, f"one becomes slow, found after {found_s:.1f} s", first_s, first_s / calm_s],
        [cost.name, f"it rests, median of {len(resting)}", (s := statistics.median(resting)), s / calm_s],
        [cost.name, f"it is back, as slow, found after {again_s:.1f} s", back, back / calm_s],
    ]


def unsuspected(cost: Cost, calm_s: float) -> list[object]:
    one = Bench(cost, RecoveryLimits(slow_factor=None))
    one.engines["rollout-1"].slower = SLOWER
    took = one.step()
    one.pool.close()
    return [cost.name, "one is slow, and nobody is suspected", took, took / calm_s]


def main() -> None:
    rows = [row for cost in COSTS for row in measure(cost)]
    rows.append(unsuspected(COSTS[0], rows[0][2]))
    table(
        f"{WORKERS} simulated workers, one {SLOWER:g} times slower; {BATCH} x {SAMPLES} samples a step, long-tailed",
        ["engines", "step", "seconds", "ratio"],
        rows,
    )


if __name__ == "__main__":
    main()
