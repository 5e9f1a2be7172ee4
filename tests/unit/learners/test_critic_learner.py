"""The critic's learner on the plain engine: where values are read, that they learn, and how deep its trunk is."""

import math

import numpy as np
import pytest
import torch

from learners.critic import CriticLearner
from learners.engines.models import load_critic, load_policy
from learners.engines.settings import ModelSettings
from learners.experience import build_experience
from learners.methods.method import Method, StepInputs, UpdateSettings, assemble
from learners.methods.presets import PRESETS
from learners.methods.value_loss import value_loss
from tests.fixtures.columns import (
    as_rank,
    critic_engine,
    gradients_of,
    parameters_of,
    random_batch,
    scores_of,
)
from tests.fixtures.tiny_model import make_tiny_model

BATCH = random_batch(5, [4, 1, 6], [[5, 2], [3, 0], [6, 1]], shuffle=True)
TOKENS = len(BATCH.token_ids)
SCORES = scores_of(1.0, -1.0, 0.5, 0.0, 2.0, -0.5)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


def learner_of(engine, value_clip=None, **update):
    settings = UpdateSettings(**{"micro_batch_tokens": 4096, **update})
    return CriticLearner(engine, Method(PRESETS["ppo"], value_clip=value_clip), settings)


def inputs_of(values, scores=SCORES):
    zeros = np.zeros(TOKENS, np.float32)
    return StepInputs(0, BATCH, scores, old=zeros, reference=zeros, values=values)


def give_a_head(engine):
    """A head that reads hidden units, so that positions differ."""
    with torch.no_grad():
        engine.module.value_head.weight.copy_(torch.linspace(-1.0, 1.0, engine.module.value_head.in_features)[None])
        engine.module.value_head.bias.fill_(0.25)
    return engine


def plain_values(engine, batch):
    """Each row alone: the head on the trunk's hidden state at the token before the one that is decided."""
    out = []
    for row in range(len(batch)):
        prompt, response = batch.prompt_of(row), batch.response_of(row)
        ids = torch.tensor(np.concatenate([prompt, response]).astype(np.int64))[None]
        hidden = engine.module.trunk(input_ids=ids).last_hidden_state[0, len(prompt) - 1 : -1]
        out.append(engine.module.value_head(hidden)[:, 0])
    return torch.cat(out)


def test_a_new_critic_values_everything_at_zero(path):
    column = learner_of(critic_engine(path)).values(BATCH)
    assert assemble([column], TOKENS).tolist() == [0.0] * TOKENS


@pytest.mark.parametrize(("budget", "ranks"), [(4096, 1), (10, 1), (10, 4)])
def test_the_value_for_a_token_is_read_where_that_token_is_decided(path, budget, ranks):
    engine = give_a_head(critic_engine(path))
    with torch.no_grad():
        expected = plain_values(engine, BATCH).numpy()
    assert np.ptp(expected) > 0.1
    shares = []
    for rank in range(ranks):
        shares.append(learner_of(as_rank(engine, rank, ranks), micro_batch_tokens=budget).values(BATCH))
    assert np.abs(assemble(shares, TOKENS) - expected).max() < 1e-5


@pytest.mark.parametrize("clip", [None, 0.2])
def test_the_gradient_is_a_plain_padded_loops_however_the_batch_is_packed(path, clip):
    old_values = np.random.default_rng(0).normal(0.0, 0.3, TOKENS).astype(np.float32)
    inputs = inputs_of(old_values)
    plain = give_a_head(critic_engine(path))
    made = build_experience(inputs, Method(PRESETS["ppo"]))
    inside = torch.arange(made.mask_BT.shape[1])[None] < torch.from_numpy(BATCH.lengths)[:, None]
    values_BT = torch.zeros(made.mask_BT.shape).masked_scatter(inside, plain_values(plain, BATCH))
    loss, _ = value_loss(values_BT, made.values_BT, made.returns_BT, made.mask_BT, clip)
    loss.backward()
    expected = torch.cat([p.grad.flatten() for p in plain.module.parameters()])
    for budget in (10, 4096):
        engine = give_a_head(critic_engine(path))
        seen = gradients_of(engine)
        result = learner_of(engine, clip, micro_batch_tokens=budget).update(inputs)
        assert (seen[0] - expected).abs().max() < 1e-5 * max(1.0, float(expected.abs().max()))
        assert result.metrics["value/loss"] == pytest.approx(loss.item(), rel=1e-5)


def test_the_first_loss_is_half_the_mean_square_of_the_returns_and_explains_nothing(path):
    result = learner_of(critic_engine(path)).update(inputs_of(np.zeros(TOKENS, np.float32)))
    # gamma = lambda = 1, no values and no KL: each token's return is its row's score
    returns = np.repeat(SCORES.values, BATCH.lengths)
    assert result.metrics["value/loss"] == pytest.approx(0.5 * float(np.mean(returns**2)), rel=1e-6)
    assert result.metrics["value/explained_variance"] == pytest.approx(0.0, abs=1e-6)
    assert result.applied and result.skipped == 0


def test_the_value_loss_falls_and_the_critic_comes_to_explain_the_returns(path):
    engine = critic_engine(path, lr=1e-3, head_lr=1e-2)
    learner = learner_of(engine, epochs=2)
    seen = []
    for _ in range(8):
        values = assemble([learner.values(BATCH)], TOKENS)
        seen.append(learner.update(inputs_of(values)).metrics)
    assert engine.steps == 16
    # not to 0: what is read at a prompt's end must serve both of its samples, whose returns differ
    assert seen[-1]["value/loss"] < 0.25 * seen[0]["value/loss"]
    assert seen[-1]["value/explained_variance"] > 0.5 > seen[0]["value/explained_variance"]


def test_a_critic_may_keep_only_the_first_layers_of_its_model(path):
    whole = load_policy(ModelSettings(str(path), dtype="float32"))
    cut = load_critic(ModelSettings(str(path), dtype="float32", layers=1))
    assert len(whole.model.layers) == 2 and len(cut.trunk.layers) == 1
    expected = dict(whole.model.named_parameters())
    assert all(torch.equal(p, expected[name]) for name, p in cut.trunk.named_parameters())
    assert len(load_critic(ModelSettings(str(path), dtype="float32")).trunk.layers) == 2


@pytest.mark.parametrize("layers", [0, 3])
def test_layers_that_the_model_does_not_have_are_refused(path, layers):
    with pytest.raises(ValueError, match=f"critic.layers is {layers}; the model has 2"):
        load_critic(ModelSettings(str(path), dtype="float32", layers=layers))


def test_a_value_that_is_not_finite_skips_the_step_and_leaves_every_bit(path):
    engine = critic_engine(path)
    before = parameters_of(engine)
    values = np.zeros(TOKENS, np.float32)
    values[2] = math.nan
    result = learner_of(engine).update(inputs_of(values))
    assert not result.applied and result.skipped == 1
    assert all(map(torch.equal, before, parameters_of(engine)))


def test_a_row_without_a_score_teaches_the_critic_nothing(path):
    bad = scores_of(math.nan, *SCORES.values[1:])
    row = slice(int(BATCH.offsets[0]), int(BATCH.offsets[1]))
    results = []
    for filler in (0.0, 1e4):
        values = np.full(TOKENS, 0.1, np.float32)
        values[row] = filler
        engine = critic_engine(path)
        learner_of(engine).update(inputs_of(values, bad))
        results.append(parameters_of(engine))
    assert BATCH.lengths[0] > 0 and all(map(torch.equal, *results))


def test_saved_state_goes_on_as_if_never_interrupted(path, tmp_path):
    first, second = critic_engine(path), critic_engine(path)
    inputs = inputs_of(np.zeros(TOKENS, np.float32))
    learner_of(first).update(inputs)
    learner_of(first).save(tmp_path)
    learner_of(first).update(inputs)
    learner_of(second).load(tmp_path)
    learner_of(second).update(inputs)
    assert all(map(torch.equal, parameters_of(first), parameters_of(second)))
