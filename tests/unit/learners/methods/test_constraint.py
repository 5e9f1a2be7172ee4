"""The Lagrangian of a cost constraint, by hand."""

import math

import numpy as np
import pytest

from learners.methods.constraint import Multiplier, constrained_scores


def test_scores_are_rewards_less_costs_over_one_plus_lambda():
    found = constrained_scores([1.0, 2.0, math.nan, 0.0], [0.5, 0.0, 1.0, math.nan], 3.0)
    np.testing.assert_allclose(found[:2], [(1.0 - 1.5) / 4, 0.5])
    assert np.isnan(found[2:]).all()
    np.testing.assert_allclose(constrained_scores([1.0], [5.0], 0.0), [1.0])


def test_the_multiplier_moves_in_its_logarithm_by_how_far_the_cost_is_off():
    start = Multiplier(2.0, bound=0.25, lr=0.1)
    assert start.update(0.75).value == pytest.approx(2.0 * math.exp(0.1 * 2.0 * 0.5))
    assert start.update(0.0).value == pytest.approx(2.0 * math.exp(0.1 * 2.0 * -0.25))
    assert start.update(0.25) == start


def test_the_multiplier_stays_finite_positive_and_below_its_maximum():
    far = Multiplier(50.0, bound=0.0, lr=10.0, maximum=60.0)
    assert far.update(1e9).value == 60.0
    small = Multiplier(1e-6, bound=0.0, lr=10.0)
    assert small.update(-1e12).value == 1e-6
    with pytest.raises(ValueError, match="no multiplier follows"):
        far.update(math.nan)
