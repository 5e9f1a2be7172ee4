"""Intervals against published values and by hand."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from actors.types import ScoreBatch
from cluster.errors import RunFailed
from cluster.run.records.evaluation import calibration_error, difference_interval, followed, mean_interval
from cluster.training.parts.evaluation import heldout_scores

NAN = math.nan


@pytest.mark.parametrize(
    ("wins", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, table I, method 3 (Wilson's score)
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (20, 20, 0.8389, 1.0),
    ],
)
def test_shares_have_wilsons_interval(wins, n, low, high):
    found = mean_interval([1.0] * wins + [0.0] * (n - wins))
    assert found.mean == pytest.approx(wins / n)
    assert found.low == pytest.approx(low, abs=5e-5) and found.high == pytest.approx(high, abs=5e-5)


def test_other_scores_have_the_t_interval():
    found = mean_interval([1.0, 2.0, 3.0])
    # standard error 1 / sqrt(3), t(0.975, 2) = 4.30265
    half = 4.30265 / math.sqrt(3)
    assert (found.mean, found.low, found.high) == pytest.approx((2.0, 2.0 - half, 2.0 + half), abs=1e-4)


def test_a_prompt_without_a_score_is_left_out_and_never_a_zero():
    assert mean_interval([1.0, NAN, 0.0, NAN]) == mean_interval([1.0, 0.0])
    assert mean_interval([NAN, 0.5]).mean == 0.5
    with pytest.raises(RunFailed, match="no held-out prompt has a score"):
        mean_interval([NAN, NAN])


def test_a_difference_is_paired_prompt_by_prompt():
    before, after = [0.0, 1.0, 0.0, 1.0], [1.0, 1.0, 0.0, 1.0]
    found = difference_interval(after, before)
    # differences 1 0 0 0: mean 0.25, variance 0.25, standard error 0.25, t(0.975, 3) = 3.18245
    assert found.mean == 0.25
    assert found.low == pytest.approx(0.25 - 0.25 * 3.18245, abs=1e-5)
    assert found.high == pytest.approx(0.25 + 0.25 * 3.18245, abs=1e-5)
    turned = difference_interval(before, after)
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low))


def test_a_pair_lacking_a_score_is_out_on_both_sides():
    assert difference_interval([1.0, NAN, 0.0, 5.0], [0.0, 1.0, 0.0, NAN]) == difference_interval(
        [1.0, 0.0], [0.0, 0.0]
    )
    assert difference_interval([1.0, NAN], [NAN, 0.0]) is None
    with pytest.raises(ValueError):
        difference_interval([1.0], [0.0, 0.0])


def test_the_same_gain_everywhere_has_an_interval_of_one_point():
    found = difference_interval([1.5, 2.5, 3.5], [1.0, 2.0, 3.0])
    assert (found.mean, found.low, found.high) == (0.5, 0.5, 0.5)
    assert mean_interval([0.7]).low == 0.7


def test_calibration_compares_confidence_with_the_share_of_right_verdicts():
    # two at 0.9 (both right), two at 0.1 (both wrong, as confident): one bin, confidence 0.9, half are right
    assert calibration_error([0.9, 0.9, 0.1, 0.1]) == pytest.approx(0.4)
    # bins 0.95 (right) and 0.55 (wrong): half of 0.05 and half of 0.55
    assert calibration_error([0.95, 0.45]) == pytest.approx(0.5 * 0.05 + 0.5 * 0.55)
    assert calibration_error([0.5, 0.5]) == 0.0
    assert calibration_error([1.0, 1.0]) == 0.0


def test_a_preference_that_nothing_decides_is_half_followed():
    assert followed([0.1, -0.1, 0.0]) == [1.0, 0.0, 0.5]


class Answered:
    """A pool and scorers that answer at once: two groups, the second first; a score and a part are missing."""

    def generate(self, prompts, sampling, version):
        return SimpleNamespace(groups=[7, 5])

    def score(self, samples):
        return [("scores", "stats")]

    def wait(self, refs):
        return [ScoreBatch(np.array([1.0, NAN]), {"kind": np.array([NAN, NAN])}, {1: "out of time"})]


def test_heldout_prompts_without_a_score_are_told_with_the_first_reason():
    found, failed = heldout_scores(Answered(), Answered(), [None, None], None, 3)
    assert np.array_equal(found["reward"], [NAN, 1.0], equal_nan=True), "in the prompts' order"
    assert failed == "of 2 held-out prompts 1 have no reward, 2 have no kind; the first: out of time"


def test_heldout_prompts_that_all_have_one_are_not_told(monkeypatch):
    monkeypatch.setattr(Answered, "wait", lambda self, refs: [ScoreBatch(np.zeros(2), {})])
    assert heldout_scores(Answered(), Answered(), [None, None], None, 3)[1] is None
