"""The watch over lengths: by hand, at its edges, and over the ledger's rows."""

import numpy as np
import pytest

from cluster.run.ledger import Ledger
from cluster.run.records.length_bias import FEWEST, LengthBias, length_bias


def test_dropping_the_long_ones_raises_the_alarm():
    draw = np.random.default_rng(0)
    found = length_bias(draw.normal(90, 10, 400).tolist(), draw.normal(190, 10, 100).tolist())
    assert found.trained == pytest.approx(90, abs=1) and found.ended == pytest.approx(110, abs=1)
    assert found.share == pytest.approx(-0.18, abs=0.01) and found.alarm
    assert str(found).startswith("trained responses are 18% shorter than all that were made")


def test_a_random_split_is_no_bias():
    draw = np.random.default_rng(0)
    splits = [draw.normal(90, 40, 400).tolist() for _ in range(50)]
    assert not any(length_bias(lengths[:200], lengths[200:]).alarm for lengths in splits)


def test_a_difference_that_matters_to_nobody_raises_no_alarm():
    assert not LengthBias(trained=98.0, ended=100.0, p=1e-9).alarm
    assert not LengthBias(trained=50.0, ended=100.0, p=0.5).alarm
    assert LengthBias(trained=150.0, ended=100.0, p=1e-9).alarm


def test_too_few_on_one_side_say_nothing():
    assert length_bias([1.0] * FEWEST, [9.0] * (FEWEST - 1)) is None
    assert length_bias([1.0] * FEWEST, [9.0] * FEWEST).alarm


def test_the_ledger_tells_trained_lengths_from_the_others_over_a_window(tmp_path):
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.admit(0, [(0, i, i) for i in range(10)])
    ledger.measured({i: float(i) for i in range(9)})  # 9 is still under way
    ledger.trained([0, 1, 2, 6], 1)
    ledger.dropped([3, 7], "stale")
    ledger.dropped([4], "no spread")  # for what it scored, not for its age
    assert ledger.recent_lengths(100) == ([6.0, 2.0, 1.0, 0.0], [7.0, 3.0])
    assert ledger.recent_lengths(2) == ([6.0], [7.0])
    ledger.close()


def test_lengths_of_what_a_resume_makes_again_are_forgotten(tmp_path):
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.admit(0, [(0, i, i) for i in range(4)])
    ledger.measured({0: 5.0, 1: 6.0})
    ledger.trained([0], 1)
    ledger.backup(tmp_path / "saved.sqlite")
    ledger.dropped([1], "stale")
    ledger.restore(tmp_path / "saved.sqlite")
    ledger.dropped([1], "stale")  # before it has ended again
    assert ledger.recent_lengths(9) == ([5.0], [])
    ledger.measured({1: 60.0})
    assert ledger.recent_lengths(9) == ([5.0], [60.0])
    ledger.clear()
    assert ledger.recent_lengths(9) == ([], [])
    ledger.close()
