"""The supervised learner on the plain engine: the loss by hand, and the same gradient however the rows are cut."""

import dataclasses

import numpy as np
import pytest
import torch

from learners import stepping
from learners.methods.method import StepInputs, UpdateSettings
from learners.supervised import SupervisedLearner
from tests.fixtures.columns import (
    as_rank,
    batch_of,
    gradients_of,
    plain_logprobs,
    policy_engine,
    random_batch,
    sample,
    scores_of,
)
from tests.fixtures.tiny_model import make_tiny_model


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


def some_context(batch):
    """The batch with every third token written by someone else."""
    turns = np.where(np.arange(len(batch.token_ids)) % 3 == 2, -1, 0).astype(np.int16)
    return dataclasses.replace(batch, turns=turns)


BATCH = some_context(random_batch(7, [4, 3, 6], [[5, 2], [3, 4], [6, 1]], shuffle=True))


def inputs_of(batch, old=None):
    return StepInputs(0, batch, scores_of(*[0.0] * len(batch)), old=old)


def learner_of(engine, budget=4096):
    return SupervisedLearner(engine, UpdateSettings(micro_batch_tokens=budget))


def test_the_loss_is_the_mean_over_trained_tokens_and_falls(path):
    engine = policy_engine(path)
    with torch.no_grad():
        lp = plain_logprobs(engine.module, BATCH)[0].numpy()
    trained = BATCH.turns >= 0
    learner = learner_of(engine)
    first = learner.update(inputs_of(BATCH)).metrics
    assert first["loss"] == pytest.approx(-lp[trained].mean(), abs=1e-5)
    assert first["sft/tokens"] == trained.sum()
    last = [learner.update(inputs_of(BATCH)).metrics["loss"] for _ in range(4)][-1]
    assert last < first["loss"]


def test_tokens_of_others_are_context_without_a_gradient(path):
    one = batch_of(sample(0, 0, [5, 6], [7, 8], turns=[0, -1]))
    other = batch_of(sample(0, 0, [5, 6], [7, 9], turns=[0, -1]))

    def gradient(batch):
        engine = policy_engine(path)
        seen = gradients_of(engine)
        learner_of(engine).update(inputs_of(batch))
        return seen[0]

    assert torch.allclose(gradient(one), gradient(other), atol=1e-7)


def test_the_gradient_is_the_same_for_any_budget_and_ranks(path, monkeypatch):
    monkeypatch.setattr(stepping.dist, "all_gather_object", lambda out, mine: out.__setitem__(0, mine))

    def run(budget, rank=0, ranks=1):
        engine = as_rank(policy_engine(path), rank, ranks)
        seen = gradients_of(engine)
        return learner_of(engine, budget).update(inputs_of(BATCH)).metrics, seen[0]

    metrics, whole = run(4096)
    close = 1e-5 * max(1.0, float(whole.abs().max()))
    for budget in (1, 20):
        found, gradient = run(budget)
        assert (gradient - whole).abs().max() < close
        assert found["loss"] == pytest.approx(metrics["loss"], abs=1e-5)
    parts = [run(1, rank, 3) for rank in range(3)]
    assert (sum(g for _, g in parts) - whole).abs().max() < close


def test_rows_are_summed_over_their_trained_tokens():
    batch = batch_of(sample(0, 0, [5], [7, 8], turns=[0, -1]), sample(1, 0, [5], []), sample(2, 0, [5], [9]))
    found = learner_of(None).row_logprobs(inputs_of(batch, np.array([-1.0, np.nan, -3.0], np.float32)))
    assert found.tolist() == [[-1.0, 1.0], [0.0, 0.0], [-3.0, 1.0]]
