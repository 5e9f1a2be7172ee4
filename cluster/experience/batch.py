"""A step's samples as they come in, wave by wave, until the step has the prompts it wants.

In: waves of samples with the references of their scores. Out: one `Samples`, how many prompts are still lacking, which
groups are flat. One wave is enough but for dynamic sampling (DAPO, Yu et al. 2025), which samples new prompts for those
whose responses all scored the same. Left out: generating and scoring (cluster/training/online.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from actors.rollouts.generation import RolloutStats
from actors.types import ScoreBatch
from cluster.experience.columns import Ref, Samples

ScoreRefs = Sequence[tuple[Ref, Ref]]
"""(scores, report) references, one pair a chunk."""


@dataclass(frozen=True, slots=True)
class Wave:
    """Samples of one generation. greedy: one greedy sample a prompt, in the same order of groups (ReMax alone)."""

    samples: Samples
    greedy: Samples | None
    seconds: float


class StepBatch:
    """wanted: prompts the step learns from. rounds: waves it may take; 1 unless flat groups are replaced.
    fetch: scores of a wave, waiting for them."""

    def __init__(self, wanted: int, rounds: int, fetch: Callable[[ScoreRefs], ScoreBatch]) -> None:
        self.lacking = wanted
        self.flat: set[int] = set()
        self.waves: list[Wave] = []
        self.scores: list[tuple[Ref, Ref]] = []
        self._rounds = rounds
        self._fetch = fetch

    def add(self, wave: Wave, scores: ScoreRefs) -> None:
        self.waves.append(wave)
        self.scores += scores
        if self._rounds == 1:
            self.lacking = 0
            return
        flat = flat_groups(self._fetch(scores).values, wave.samples)
        self.flat |= flat
        self.lacking -= len(wave.samples.groups) - len(flat)
        if len(self.waves) == self._rounds:
            self.lacking = 0

    @property
    def samples(self) -> Samples:
        return Samples.merge([wave.samples for wave in self.waves])

    @property
    def rollout_stats(self) -> tuple[RolloutStats, float]:
        """(all workers' together, seconds of the waves)."""
        return RolloutStats.merge(self.samples.stats), sum(wave.seconds for wave in self.waves)


def flat_groups(values: np.ndarray, samples: Samples) -> set[int]:
    """Groups whose samples have fewer than two different scores; values [rows], NaN without a score."""
    rows = values.reshape(len(samples.groups), samples.samples_per_prompt)
    return {
        group
        for group, scores in zip(samples.groups, rows, strict=True)
        if len(set(scores[np.isfinite(scores)].tolist())) < 2
    }


def best_and_worst(values: np.ndarray, samples: Samples, ties: set[int]) -> list[int]:
    """Rows two by two: the best and the worst sample of each group that is no tie; the first of equals. values [rows],
    NaN without a score."""
    rows = values.reshape(len(samples.groups), samples.samples_per_prompt)
    return [
        place * samples.samples_per_prompt + int(at)
        for place, group in enumerate(samples.groups)
        if group not in ties
        for at in (np.nanargmax(rows[place]), np.nanargmin(rows[place]))
    ]


def baselines(samples: Samples, greedy: np.ndarray) -> np.ndarray:
    """[rows] each sample's greedy score; greedy [prompts], in the order of the samples' groups."""
    return np.repeat(np.asarray(greedy, np.float64), samples.samples_per_prompt)


def dropped_groups(values: np.ndarray, samples: Samples) -> set[int]:
    """Groups of which no sample has a score."""
    rows = np.isfinite(values).reshape(len(samples.groups), samples.samples_per_prompt)
    return {group for group, known in zip(samples.groups, rows.any(axis=1), strict=True) if not known}
