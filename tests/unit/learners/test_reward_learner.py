"""The reward model's learner on the plain engine: its scores, losses by hand, cuts, and an export that scores alike."""

import numpy as np
import pytest
import torch

from actors.models.reward_model import RewardModel
from actors.types import SampleBatch
from learners import stepping
from learners.engines.models import load_reward_model
from learners.engines.optimizer import OptimizerSettings
from learners.engines.settings import ModelSettings
from learners.engines.torch_engine import TorchEngine
from learners.export import export_policy
from learners.methods.method import StepInputs, UpdateSettings, assemble
from learners.methods.presets import RewardModelSettings
from learners.reward import RewardLearner, rating_loss
from tests.fixtures.columns import CPU, as_rank, batch_of, gradients_of, random_batch, sample, scores_of
from tests.fixtures.tiny_model import make_tiny_model

PAIRS = random_batch(5, [4, 3, 6, 2], [[5, 2], [3, 4], [6, 6], [1, 9]], shuffle=True)
ROUNDING = 1e-5
"""Relative: scores reach 16 here, and float32 kernels of other shapes round otherwise, on some processors more."""


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


def learner_of(path, budget=4096, head=True, **settings):
    module = load_reward_model(ModelSettings(str(path), dtype="float32"))
    if head:
        torch.manual_seed(1)
        torch.nn.init.normal_(module.classifier.score.weight)
    engine = TorchEngine(module, optimizer=OptimizerSettings(lr=1e-3, max_grad_norm=0.0), dtype="float32", device=CPU)
    return RewardLearner(engine, RewardModelSettings(**settings), UpdateSettings(micro_batch_tokens=budget))


def scores_by_hand(learner, batch: SampleBatch):
    """Each row alone: the head at the last token of prompt and response."""
    model, found = learner._engine.module.classifier, []
    for row in range(len(batch)):
        ids = torch.tensor(np.concatenate([batch.prompt_of(row), batch.response_of(row)]).astype(np.int64))[None]
        with torch.no_grad():
            found.append(float(model.score(model.base_model(input_ids=ids).last_hidden_state[0, -1])))
    return np.array(found)


def inputs_of(batch, values=None):
    return StepInputs(0, batch, scores_of(*(values or [0.0] * len(batch))))


def test_a_new_head_scores_everything_zero(path):
    assert assemble([learner_of(path, head=False).row_scores(PAIRS)], len(PAIRS)).tolist() == [0.0] * len(PAIRS)


@pytest.mark.parametrize("budget", [1, 20, 4096])
def test_a_row_s_score_is_read_at_its_last_token(path, budget):
    batch = SampleBatch.concat([PAIRS, batch_of(sample(99, 0, [5, 6], []), sample(98, 0, [5, 6], [7]))])
    learner = learner_of(path, budget)
    np.testing.assert_allclose(
        assemble([learner.row_scores(batch)], len(batch)), scores_by_hand(learner, batch), rtol=ROUNDING, atol=1e-5
    )


def test_the_loss_on_pairs_by_hand(path):
    learner = learner_of(path, centre_coef=0.5)
    scores = scores_by_hand(learner, PAIRS)
    margins = [0.25 if index == 0 else 0.0 for index in PAIRS.sample_indices]
    losses = []
    for group in range(4):
        rows = np.flatnonzero(PAIRS.group_rows == group)
        chosen, rejected = sorted(rows, key=lambda row: PAIRS.sample_indices[row])
        gap = scores[chosen] - scores[rejected] - 0.25
        losses.append(np.log1p(np.exp(-gap)) + 0.5 * (scores[chosen] + scores[rejected]) ** 2)
    assert learner.update(inputs_of(PAIRS, margins)).metrics["loss"] == pytest.approx(np.mean(losses), rel=1e-5)


def test_steps_on_pairs_order_them(path):
    learner = learner_of(path, head=False)
    seen = [learner.update(inputs_of(PAIRS)).metrics for _ in range(12)]
    assert seen[0]["preference/accuracy"] == 0.0 and seen[0]["loss"] == pytest.approx(np.log(2))
    assert seen[-1]["preference/accuracy"] == 1.0 and seen[-1]["loss"] < 0.6


def test_ratings_by_hand_and_by_steps(path):
    loss, metrics = rating_loss(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 1.0]))
    assert loss.item() == 2.5 and metrics["rewards/mean"].item() == 2.0
    learner = learner_of(path, head=False, ratings=True)
    ratings = [float(length) / 4 for length in PAIRS.lengths]
    seen = [learner.update(inputs_of(PAIRS, ratings)).metrics["loss"] for _ in range(12)]
    assert seen[0] == pytest.approx(np.mean(np.square(ratings))) and seen[-1] < seen[0] / 1.5


@pytest.mark.parametrize("ratings", [False, True])
def test_the_gradient_is_the_same_for_any_budget_and_ranks(path, ratings, monkeypatch):
    monkeypatch.setattr(stepping.dist, "all_gather_object", lambda out, mine: out.__setitem__(0, mine))

    def run(budget, rank=0, ranks=1):
        learner = learner_of(path, budget, ratings=ratings)
        as_rank(learner._engine, rank, ranks)
        seen = gradients_of(learner._engine)
        learner.update(inputs_of(PAIRS))
        return seen[0]

    whole = run(4096)
    close = 1e-5 * max(1.0, float(whole.abs().max()))
    assert (run(1) - whole).abs().max() < close
    assert (sum(run(1, rank, 3) for rank in range(3)) - whole).abs().max() < close


def test_an_export_scores_as_the_learner_does(path, tmp_path):
    learner = learner_of(path)
    facts = {"run": "r", "model": "m", "method": "reward_model", "step": 1, "digest": "d", "evaluation": {}}
    export_policy(learner, tmp_path / "out", path, facts)
    loaded = RewardModel(tmp_path / "out", dtype=torch.float32)
    assert loaded.model.config.num_labels == 1
    chats = [[*PAIRS.prompt_of(row), *PAIRS.response_of(row)] for row in range(len(PAIRS))]
    mine = assemble([learner.row_scores(PAIRS)], len(PAIRS))
    np.testing.assert_allclose(loaded.score_tokens(chats), mine, rtol=ROUNDING, atol=1e-5)


def test_a_reward_model_goes_on_from_its_own_head(path, tmp_path):
    learner = learner_of(path)
    facts = {"run": "r", "model": "m", "method": "reward_model", "step": 1, "digest": "d", "evaluation": {}}
    export_policy(learner, tmp_path / "out", path, facts)
    again = load_reward_model(ModelSettings(str(tmp_path / "out"), dtype="float32"))
    assert torch.equal(again.classifier.score.weight, learner._engine.module.classifier.score.weight)
