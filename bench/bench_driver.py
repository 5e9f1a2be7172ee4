"""What the driver's own code costs a sample, with 1 worker and with 1,024: dispatch, admission, the backlog.

The discrete-event twin (cluster/simulate) runs the real code against simulated workers; only the driver's part is on
the real clock. A million samples in all with 1,024 workers. Ray's calls are not in it: a ticket is one call.
"""

from __future__ import annotations

import time

import numpy as np

from bench.common import table
from cluster.simulate.run import Forecast, Scenario, simulate
from cluster.simulate.worker import StepTime

SAMPLES, ROUNDS = 8, 3
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


def main() -> None:
    rows, costs = [], {}
    for workers, samples in ((1, 100_000), (1024, 1_000_000)):
        runs: list[tuple[Forecast, float]] = []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            runs.append((simulate(scenario(workers, samples)), time.perf_counter() - began))
        found, wall_s = min(runs, key=lambda run: run[0].driver_s)
        costs[workers] = 1e6 * found.driver_s / found.samples
        rows.append(
            [
                workers,
                found.samples,
                costs[workers],
                1e6 / costs[workers],
                found.learner_idle,
                max(found.staleness),
                wall_s,
            ]
        )
    table(
        f"The driver's code, tickets of {SAMPLES} samples",
        ["workers", "samples", "microseconds a sample", "samples/s", "learner idle", "staleness", "twin's seconds"],
        rows,
    )
    print(f"\ncost with 1,024 workers over cost with 1: {costs[1024] / costs[1]:.2f}")


if __name__ == "__main__":
    main()
