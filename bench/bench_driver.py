"""What the driver's own code costs a sample, with 1 worker and with 1,024: dispatch, admission, the backlog.

The discrete-event twin (cluster/simulate) runs the real code against simulated workers; only the driver's part is on
the real clock. A million samples in all with 1,024 workers. Ray's calls are not in it: a ticket is one call. The two
take turns, for one run of either differs from the next by a third on a machine that others share: the ratio is the
median of the rounds' ratios.
"""

from __future__ import annotations

import statistics
import time

import numpy as np

from bench.tools.common import table
from cluster.simulate.run import Forecast, Scenario, simulate
from cluster.simulate.worker import StepTime

SAMPLES, ROUNDS = 8, 9
PER_WORKER = 8
"""Prompts of a batch a worker: 64 sequences, its limit."""


def scenario(workers: int, samples: int) -> Scenario:
    batch = PER_WORKER * workers
    lengths = np.minimum(600, 100 * np.exp(0.8 * np.random.default_rng(0).standard_normal((4096, SAMPLES)))).astype(int)
    table_of = (lengths + 1).tolist()
    return Scenario(
        workers=workers,
        batch=batch,
        samples=SAMPLES,
        steps=max(1, samples // (batch * SAMPLES)),
        step=StepTime(base=0.02, each=0.0002),
        lengths=lambda group: table_of[group % 4096],
        learn_s=lambda tokens: 4.0,
        publish_s=0.5,
        score_s=0.1,
        max_staleness=2,
        sequences=64,
        max_tokens=601,
    )


SIZES = {1: 200_000, 1024: 1_000_000}
"""Samples with so many workers."""


def timed(workers: int) -> tuple[Forecast, float]:
    """What the twin found, and its own seconds."""
    began = time.perf_counter()
    found = simulate(scenario(workers, SIZES[workers]))
    return found, time.perf_counter() - began


def cost(found: Forecast) -> float:
    """Microseconds of the driver's code a sample."""
    return 1e6 * found.driver_s / found.samples


def main() -> None:
    rounds = [{workers: timed(workers) for workers in SIZES} for _ in range(ROUNDS)]
    rows = []
    for workers in SIZES:
        found, wall_s = rounds[0][workers]
        typical = statistics.median(cost(one[workers][0]) for one in rounds)
        rows.append([workers, found.samples, typical, 1e6 / typical, found.learner_idle, max(found.staleness), wall_s])
    table(
        f"The driver's code, tickets of {SAMPLES} samples",
        ["workers", "samples", "microseconds a sample", "samples/s", "learner idle", "staleness", "twin's seconds"],
        rows,
    )
    ratios = sorted(cost(one[1024][0]) / cost(one[1][0]) for one in rounds)
    print(
        f"\ncost with 1,024 workers over cost with 1: {statistics.median(ratios):.2f} "
        f"({ratios[0]:.2f} to {ratios[-1]:.2f} in {ROUNDS} rounds)"
    )


if __name__ == "__main__":
    main()
