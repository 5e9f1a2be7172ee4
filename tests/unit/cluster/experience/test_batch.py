"""A step's waves: how many prompts are lacking, which groups are flat, and that nothing else changes."""

import math

import numpy as np
import pytest

from actors.rollouts.generation import RolloutStats
from actors.types import ScoreBatch
from cluster.experience.batch import StepBatch, Wave, baselines, best_and_worst, dropped_groups, flat_groups
from cluster.experience.columns import Samples

NAN = math.nan


def samples(groups, per_prompt=2, tag="a"):
    return Samples((f"{tag}chunk",), (f"{tag}prompts",), tuple(groups), per_prompt, f"{tag}recorded", (stats(tag),))


def stats(tag):
    return RolloutStats(1.0, 4, 10, 20, 0, 5, -3.0)


def wave(groups, per_prompt=2, tag="a"):
    return Wave(samples(groups, per_prompt, tag), None, 1.5)


def batch(scores, wanted=2, rounds=3):
    """A batch whose waves score as told, wave by wave."""
    left = [ScoreBatch(np.array(values), {}) for values in scores]
    return StepBatch(wanted, rounds, lambda refs: left.pop(0))


def test_one_wave_is_enough_and_nobody_waits_for_scores_where_nothing_is_resampled():
    found = StepBatch(2, 1, lambda refs: pytest.fail("scores are not needed yet"))
    assert found.lacking == 2
    found.add(wave([0, 1]), [("s", "r")])
    assert found.lacking == 0 and not found.flat
    assert found.scores == [("s", "r")]


def test_flat_groups_are_replaced_until_the_step_has_its_prompts():
    found = batch([[1, 0, 1, 1], [0, 0], [0, 1]])
    found.add(wave([0, 1]), [("s0", "r0")])
    assert (found.lacking, found.flat) == (1, {1})
    found.add(wave([2], tag="b"), [("s1", "r1")])
    assert (found.lacking, found.flat) == (1, {1, 2})
    found.add(wave([3], tag="c"), [("s2", "r2")])
    assert (found.lacking, found.flat) == (0, {1, 2})
    assert found.samples.groups == (0, 1, 2, 3)
    assert found.samples.chunks == ("achunk", "bchunk", "cchunk")
    assert found.samples.recorded == "crecorded"
    assert found.rollout_stats[1] == 4.5


def test_a_step_ends_its_search_after_its_rounds_and_keeps_what_it_found():
    found = batch([[0, 0, 1, 0], [1, 1]], rounds=2)
    found.add(wave([0, 1]), [])
    found.add(wave([2], tag="b"), [])
    assert found.lacking == 0 and found.flat == {0, 2}


def test_a_group_is_flat_when_fewer_than_two_of_its_scores_differ():
    values = np.array([1.0, 1.0, 0.5, 0.25, NAN, 1.0, NAN, NAN])
    assert flat_groups(values, samples([10, 11, 12, 13])) == {10, 12, 13}
    assert dropped_groups(values, samples([10, 11, 12, 13])) == {13}


def test_each_sample_has_its_prompts_greedy_score():
    assert baselines(samples([4, 5], per_prompt=3), np.array([0.5, NAN])).tolist()[:3] == [0.5] * 3
    assert np.isnan(baselines(samples([4, 5], per_prompt=3), np.array([0.5, NAN]))[3:]).all()


def test_the_best_and_the_worst_of_a_group_are_a_pair_and_ties_are_none():
    values = np.array([0.5, 1.0, 0.0, 2.0, 2.0, 2.0, NAN, 3.0, 1.0, NAN, NAN, 4.0])
    found = samples([7, 8, 9, 10], per_prompt=3)
    ties = flat_groups(values, found)
    assert ties == {8, 10}
    assert best_and_worst(values, found, ties) == [1, 2, 7, 8]
