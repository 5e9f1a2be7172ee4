"""Asynchronous against synchronous on long-tailed lengths: the real pool, dispatch, admission and stream; simulated
latencies.

Engines whose decode step takes a fixed time whatever runs in it (as a GPU's does while it is not full), response
lengths log-normal, and a learner that is a sleep. Bubbles b are the learner's idle share of a step. The bound of what
asynchrony can give is the ratio of the learner's busy shares, (1 - b_async) / (1 - b_sync), with b_async from the work
alone: no step is shorter than the learner's own time, nor than its batch's longest sequence over the steps that it may
take. The work is the same in all runs.

That bound lets a sequence decode through the whole of S + 1 steps. But the last of them ends in learning from it: where
a batch is admitted with each version, one admitted with version v is taken by step v + S at the latest, learned from,
and only then batch v + S + 1 is admitted. So S + 1 steps take the longest sequence's time and the learner's, which for
S = 0 is the synchronous loop. The last column is the share of what this leaves.
"""

from __future__ import annotations

import time

import numpy as np

from actors.types import PolicyVersion, Prompt, SamplingSettings
from bench.tools.common import table
from bench.tools.timed_engine import Lengths, TimedEngine
from cluster.pool.admission import Admission
from cluster.pool.members.roster import Deadlines
from cluster.pool.pool import RolloutPool
from cluster.simulate.run import Scenario, simulate
from cluster.simulate.worker import StepTime
from cluster.training.parts.stream import Stream
from tests.fixtures.local_rollout import local_start

WORKERS, BATCH, SAMPLES, STEPS = 4, 16, 4, 12
BOUNDS = (1, 2, 4)
"""Of staleness, in versions."""
STEP_S, LEARN_S = 0.004, 0.8
LENGTHS = Lengths(longest=600)


def pool_of() -> RolloutPool:
    pool = RolloutPool(
        local_start(lambda name: TimedEngine(LENGTHS, lambda sequences: STEP_S), {}),
        WORKERS,
        put=lambda value: value,
        sequences=64,
        deadlines=Deadlines(60.0, 600.0, 60.0),
    )
    pool.adopt(PolicyVersion(0, "disk"))
    return pool


SAMPLING = SamplingSettings(max_tokens=LENGTHS.longest + 1, samples_per_prompt=SAMPLES)


def prompts(first: int, count: int) -> list[Prompt]:
    return [Prompt(id=g, token_ids=(1,), group=g) for g in range(first, first + count)]


def synchronous() -> float:
    """Seconds a step: generate a batch, learn from it."""
    pool = pool_of()
    began = time.monotonic()
    for step in range(STEPS):
        pool.generate(prompts(step * BATCH, BATCH), SAMPLING, 0)
        time.sleep(LEARN_S)
    took = time.monotonic() - began
    pool.close()
    return took / STEPS


def asynchronous(staleness: int) -> tuple[float, float]:
    """(seconds a step, the learner's idle share), without the first steps, in which the pipe fills."""
    pool, admitted = pool_of(), [0]

    def more(version: int, count: int) -> list[Prompt]:
        admitted[0] += count
        return prompts(admitted[0] - count, count)

    stream = Stream(
        pool,
        Admission(BATCH, staleness),
        SAMPLING,
        next_prompts=more,
        drop=lambda groups, reason: None,
        recorded=0,
        timeout_s=600.0,
    )
    fill, waited = staleness + 1, 0.0
    for step in range(STEPS + fill):
        if step == fill:
            began, waited = time.monotonic(), 0.0
        stream.admit(version=step, in_flight=admitted[0] - step * BATCH, flat=0, steps=STEPS + fill + staleness)
        asked = time.monotonic()
        stream.take(step, BATCH)
        waited += time.monotonic() - asked
        time.sleep(LEARN_S)
    took = time.monotonic() - began
    pool.close()
    return took / STEPS, waited / took


def main() -> None:
    sync_s = synchronous()
    rows = [["synchronous", sync_s, 1.0, 1.0, 1 - LEARN_S / sync_s, "", foretold(0), ""]]
    for staleness in BOUNDS:
        async_s, idle = asynchronous(staleness)
        gain = sync_s / async_s
        bound, left = (sync_s / max(LEARN_S, s / (staleness + 1)) for s in (longest_s(), longest_s() + LEARN_S))
        name = f"asynchronous, at most {staleness} versions old"
        rows.append([name, async_s, gain, bound, idle, gain / bound, foretold(staleness), gain / left])
    table(
        f"{WORKERS} simulated workers, {BATCH} x {SAMPLES} samples a step, log-normal lengths, the learner {LEARN_S} s",
        [
            "schedule",
            "s a step",
            "speed-up",
            "bound",
            "learner idle",
            "share of the bound",
            "foretold s a step",
            "share with the learning in the age",
        ],
        rows,
    )


def foretold(staleness: int) -> float:
    """Seconds a step by the discrete-event twin, from the same times and lengths: what `raylign plan` computes."""
    forecast = simulate(
        Scenario(
            workers=WORKERS,
            batch=BATCH,
            samples=SAMPLES,
            steps=STEPS + staleness + 1,
            step=StepTime(base=STEP_S, each=0.0),
            lengths=lambda group: [LENGTHS(group, index) for index in range(SAMPLES)],
            learn_s=lambda tokens: LEARN_S,
            max_staleness=staleness,
            sequences=64,
            max_tokens=LENGTHS.longest + 1,
        )
    )
    return float(np.mean(forecast.step_s[staleness + 1 :] if staleness else forecast.step_s))


def longest_s() -> float:
    """Mean over batches of the time that their longest sequence takes."""
    batches = [range(step * BATCH, (step + 1) * BATCH) for step in range(STEPS)]
    return STEP_S * float(np.mean([max(LENGTHS(g, i) for g in batch for i in range(SAMPLES)) for batch in batches]))


if __name__ == "__main__":
    main()
