"""What optimiser steps report: sums over ranks, values that only one rank knows, means over an update."""

import math

import numpy as np
import pytest
import torch

from learners import stepping
from learners.stepping import RunningMean, gather_known, sum_over_ranks
from tests.fixtures.columns import as_rank, policy_engine
from tests.fixtures.tiny_model import make_tiny_model

NAN = float("nan")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


def test_metrics_of_ranks_add_up_and_a_rank_without_one_adds_nothing(path, monkeypatch):
    others = [{"a": 0.25, "b": 1.0}, {}]

    def gather(gathered, mine):
        gathered[:] = [mine, *others]

    monkeypatch.setattr(stepping.dist, "all_gather_object", gather)
    engine = as_rank(policy_engine(path), 0, 3)
    assert sum_over_ranks({"a": torch.tensor(0.5)}, engine) == {"a": 0.75, "b": 1.0}


def test_shown_values_come_from_whichever_rank_has_them(path, monkeypatch):
    def gather(gathered, mine):
        gathered[:] = [mine, np.array([NAN, 2.0, NAN])]

    monkeypatch.setattr(stepping.dist, "all_gather_object", gather)
    known = gather_known(np.array([1.0, NAN, NAN]), as_rank(policy_engine(path), 0, 2))
    assert known[:2].tolist() == [1.0, 2.0] and np.isnan(known[2])


def test_means_leave_out_what_is_not_finite():
    means = RunningMean()
    means.add({"loss": 1.0, "norm": NAN})
    means.add({"loss": NAN, "norm": math.inf})
    means.add({"loss": 2.0})
    assert means.means()["loss"] == 1.5 and math.isnan(means.means()["norm"])
