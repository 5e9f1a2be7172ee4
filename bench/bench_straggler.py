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
from dataclasses import dataclass

from actors.types import PolicyVersion, Prompt, SamplingSettings
from bench.tools.common import table
from bench.tools.timed_engine import Lengths, TimedEngine
from cluster.pool.members.recovery import RecoveryLimits
from cluster.pool.members.roster import Deadlines
from cluster.pool.pool import RolloutPool
from tests.fixtures.local_rollout import local_start

WORKERS, BATCH, SAMPLES, SLOWER = 4, 16, 4, 10.0
LENGTHS = Lengths(longest=400)
CALM_STEPS, MOST_STEPS = 4, 20
SAMPLING = SamplingSettings(max_tokens=LENGTHS.longest + 1, samples_per_prompt=SAMPLES)
PROMPTS = [Prompt(id=g, token_ids=(1,), group=g) for g in range(BATCH)]


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of a decode step: base, and more for each sequence."""

    name: str
    base: float
    each: float

    def __call__(self, sequences: int) -> float:
        return self.base + self.each * sequences


COSTS = (Cost("a step costs 10 ms", 0.010, 0.0), Cost("a step costs 4 ms and 1 a sequence", 0.004, 0.001))


class Bench:
    """A pool of one cost; samples: that came, of every step."""

    def __init__(self, cost: Cost, limits: RecoveryLimits) -> None:
        self.told: list[tuple[float, str, str]] = []
        self.engines: dict[str, TimedEngine] = {}
        self.samples = self.steps = 0

        def engine(name: str) -> TimedEngine:
            self.engines[name] = TimedEngine(LENGTHS, cost)
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
        assert sorted(came) == [(g, i, LENGTHS(g, i)) for g in range(BATCH) for i in range(SAMPLES)]
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
