"""What a finished run tells of its machine: times by which other numbers of workers and ranks can be foretold.

In: a run's metrics and the lengths of its kept samples. Out: `Measured`, and a Scenario for so many workers. Decoding
is fitted as seconds = base x steps + each x tokens over the run's generations (a batch takes as many decode steps as
its longest response has tokens), learning as seconds = fixed + each x tokens / ranks. Left out: what cannot be seen in
one run, such as how the interconnect of more ranks behaves: their time is divided by their number.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.errors import UserError
from cluster.run.records.metrics import Row
from cluster.simulate.run import Scenario
from cluster.simulate.worker import StepTime

LEAST_STEPS = 5


@dataclass(frozen=True, slots=True)
class Measured:
    """step: of one worker's engine. learn_fixed_s, learn_token_s: of the run's own ranks. lengths: response tokens,
    groups in turns. sequences, batch, samples, ranks: as the run was set."""

    step: StepTime
    learn_fixed_s: float
    learn_token_s: float
    publish_s: float
    score_s: float
    lengths: tuple[tuple[int, ...], ...]
    sequences: int
    batch: int
    samples: int
    ranks: int
    max_tokens: int

    def scenario(self, *, workers: int, ranks: int, max_staleness: int, settle: bool, steps: int = 40) -> Scenario:
        faster = self.ranks / ranks
        return Scenario(
            workers=workers,
            batch=self.batch,
            samples=self.samples,
            steps=steps,
            step=self.step,
            lengths=lambda group: list(self.lengths[group % len(self.lengths)]),
            learn_s=lambda tokens: self.learn_fixed_s + faster * self.learn_token_s * tokens,
            publish_s=self.publish_s,
            score_s=self.score_s,
            max_staleness=max_staleness,
            settle=settle,
            sequences=self.sequences,
            max_tokens=self.max_tokens,
        )


def measure(config: Mapping[str, Any], rows: Sequence[Row], lengths: Sequence[Sequence[int]]) -> Measured:
    """rows: the metrics of steps, the first (which warms up) left out here. UserError where they tell too little."""
    rollout, learner = config["rollout"], config["learner"]
    steps = [row for row in rows if row.get("response/length_max") is not None][1:]
    if len(steps) < LEAST_STEPS:
        raise UserError(
            f"a plan needs a run of at least {LEAST_STEPS + 1} steps that generated samples, this one has {len(steps)}"
        )
    samples, batch = rollout["sampling"]["samples_per_prompt"], rollout["prompts_per_step"]
    tokens = np.array([_number(row, "response/length_mean") * samples * batch for row in steps])
    longest = np.array([_number(row, "response/length_max") for row in steps])
    generate = np.array([_number(row, "role/rollout/generate_s") for row in steps])
    # Of that step: workers come and go while a run goes on.
    workers = np.array([row.get("rollout/workers") or rollout["workers"] for row in steps])
    base, each = _fit(longest, tokens / workers, generate)
    learned = np.array([_learner_seconds(row) for row in steps])
    fixed, token = _fit(np.ones(len(steps)), tokens, learned)
    return Measured(
        step=StepTime(base, each),
        learn_fixed_s=fixed,
        learn_token_s=token,
        publish_s=statistics.median(_number(row, "sync/seconds") for row in steps),
        score_s=statistics.median(row.get("role/scorer/score_s") or 0.0 for row in steps),
        lengths=tuple(tuple(group) for group in lengths),
        sequences=rollout["max_num_seqs"],
        batch=batch,
        samples=samples,
        ranks=learner["ranks"],
        max_tokens=rollout["sampling"]["max_tokens"],
    )


def groups_of(lengths: Sequence[int], samples: int) -> list[list[int]]:
    """Groups of so many samples out of the lengths that were kept, in turns where they are few."""
    if not lengths:
        raise UserError(
            "the run kept no samples, so nothing tells how long responses are; set tracking.samples_per_step"
        )
    rng = np.random.default_rng(0)
    drawn = rng.choice(np.asarray(lengths), size=(256, samples))
    return [[max(1, int(length)) for length in group] for group in drawn]


def _number(row: Row, name: str) -> float:
    """Of a step that generated samples; UserError where it was not finite."""
    value = row[name]
    if value is None:
        raise UserError(
            f"step {row['step']:g} has no {name} (it was not finite), so no times can be found; name a run "
            "whose steps all have it"
        )
    return value


def _learner_seconds(row: Row) -> float:
    return sum(value for name, value in row.items() if name.startswith("role/learner/") and value is not None)


def _fit(first: np.ndarray, second: np.ndarray, seconds: np.ndarray) -> tuple[float, float]:
    """Least squares of seconds = a first + b second with a, b >= 0."""
    from scipy.optimize import nnls

    (a, b), _ = nnls(np.stack([first, second], axis=1).astype(float), seconds.astype(float))
    return float(a), float(b)
