"""The policy's learner on the plain engine: on-policy invariants, gradients against a plain loop, skips, weights."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from actors.transports.buckets import tensors_of
from actors.types import digest_buckets
from learners import stepping
from learners.engines.models import load_critic, load_policy
from learners.engines.settings import ModelSettings
from learners.experience import build_experience
from learners.methods.method import Method, StepInputs, UpdateSettings, assemble
from learners.methods.policy_losses import policy_loss
from learners.methods.presets import PRESETS
from learners.policy import PolicyLearner
from tests.fixtures.columns import (
    as_rank,
    batch_of,
    gradients_of,
    parameters_of,
    plain_logprobs,
    policy_engine,
    random_batch,
    sample,
    scores_of,
)
from tests.fixtures.tiny_model import make_tiny_model

BATCH = random_batch(5, [4, 3, 6], [[5, 2, 7], [3, 4, 1], [6, 6, 2]], shuffle=True)
TOKENS = len(BATCH.token_ids)
VALUES = np.random.default_rng(1).normal(size=9)
SCORES = scores_of(*VALUES)
NAN = float("nan")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


def learner_of(engine, name="grpo", temperature=1.0, **update):
    settings = UpdateSettings(**{"micro_batch_tokens": 4096, **update})
    preset = PRESETS[name]
    if preset.loss.aggregation == "seq-mean-token-sum-norm":
        preset = dataclasses.replace(preset, loss=dataclasses.replace(preset.loss, horizon=8.0))
    return PolicyLearner(engine, Method(preset, temperature=temperature), settings)


def columns(seed=0, **given):
    """Columns of a step a little off-policy: near what the tiny model's own log-probs are."""
    rng = np.random.default_rng(seed)
    made = {name: rng.normal(-5.0, 0.3, TOKENS).astype(np.float32) for name in ("old", "reference")}
    made["values"] = rng.normal(0.0, 0.1, TOKENS).astype(np.float32)
    return StepInputs(0, BATCH, **{"scores": SCORES, "kl_coef": 0.05, **made, **given})


def on_policy(learner, **given):
    old = assemble([learner.logprobs(BATCH)], TOKENS)
    return columns(**{"old": old, "reference": old, **given})


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_ppo_starts_its_first_minibatch_at_ratio_one_on_every_token(path, temperature):
    learner = learner_of(policy_engine(path), "ppo", temperature, micro_batch_tokens=24)
    inputs = on_policy(learner)
    result = learner.update(inputs, show_rows=tuple(range(9)))
    d = np.concatenate([detail.logprobs for detail in result.details]) - inputs.old
    assert np.abs(d).max() < 1e-5
    assert result.metrics["policy/ratio"] == pytest.approx(1.0, abs=1e-5)
    assert result.metrics["policy/clip_fraction"] == 0.0
    assert result.metrics["policy/approx_kl"] == pytest.approx(0.0, abs=1e-9)
    assert result.metrics["kl/ref"] == pytest.approx(0.0, abs=1e-9)
    assert result.metrics["kl/ref_sequence"] == 0.0


def test_grpo_without_old_takes_its_own_detached_logprobs_for_old(path):
    engines = [policy_engine(path) for _ in range(2)]
    seen = [gradients_of(engine) for engine in engines]
    learners = [learner_of(engine) for engine in engines]
    reference = on_policy(learners[0]).reference
    with_old = learners[0].update(on_policy(learners[0]))
    without = learners[1].update(columns(old=None, reference=reference))
    for result in (with_old, without):
        assert result.metrics["policy/ratio"] == pytest.approx(1.0, abs=1e-5)
        assert result.metrics["policy/clip_fraction"] == 0.0
    assert (seen[0][0] - seen[1][0]).abs().max() < 1e-5


def test_without_a_learning_rate_every_pass_stays_at_ratio_one(path):
    learner = learner_of(policy_engine(path, lr=0.0), "ppo", epochs=2, minibatches=3)
    metrics = learner.update(on_policy(learner)).metrics
    assert metrics["policy/ratio"] == pytest.approx(1.0, abs=1e-5) and metrics["policy/clip_fraction"] == 0.0


def test_a_second_pass_without_old_is_refused_and_so_is_a_reward_kl(path):
    engine = policy_engine(path)
    with pytest.raises(ValueError, match="pass them as old"):
        learner_of(engine, "grpo", epochs=2).update(columns(old=None))
    with pytest.raises(ValueError, match="pass them as old"):
        learner_of(engine, "ppo").update(columns(old=None))


def plain_gradient(path, inputs, name):
    """Each row alone through the model, one padded loss over the whole batch, one backward."""
    engine = policy_engine(path)
    learner = learner_of(engine, name)
    made = build_experience(inputs, learner._method)
    lp, entropy = plain_logprobs(engine.module, BATCH)
    pads = [torch.zeros(made.mask_BT.shape, dtype=torch.float64) for _ in range(2)]
    inside = torch.arange(made.mask_BT.shape[1])[None] < torch.from_numpy(BATCH.lengths)[:, None]
    lp_BT, entropy_BT = (p.masked_scatter(inside, x) for p, x in zip(pads, (lp, entropy), strict=True))
    loss, metrics = policy_loss(
        lp_BT,
        lp_BT.detach() if made.old_BT is None else made.old_BT,
        made.advantages_BT,
        made.mask_BT,
        learner._method.preset.loss,
        roll=made.roll_BT,
        ref=made.ref_BT,
        entropy=entropy_BT,
    )
    loss.backward()
    return torch.cat([p.grad.flatten() for p in engine.module.parameters()]), metrics


@pytest.mark.parametrize("name", ["grpo", "ppo", "rloo", "gspo", "dr_grpo", "dapo", "cispo"])
def test_the_gradient_is_a_plain_padded_loops_however_the_batch_is_packed(path, name):
    # a group's score that failed: its row is out of every total
    inputs = columns(scores=scores_of(*[NAN if i == 4 else v for i, v in enumerate(VALUES)]))
    expected, metrics = plain_gradient(path, inputs, name)
    size = float(expected.abs().max())
    assert size > 1e-3
    for budget in (64, 4096):
        engine = policy_engine(path)
        seen = gradients_of(engine)
        result = learner_of(engine, name, micro_batch_tokens=budget).update(inputs)
        assert (seen[0] - expected).abs().max() < 1e-5 * max(1.0, size)
        assert result.metrics["policy/loss"] == pytest.approx(float(metrics["policy/loss"]), abs=1e-5)
        assert result.metrics["policy/entropy"] == pytest.approx(float(metrics["policy/entropy"]), abs=1e-5)
        assert result.metrics["policy/rows_trained"] == 8.0


@pytest.mark.parametrize("ranks", [2, 5])
def test_the_ranks_gradients_and_metrics_sum_to_one_ranks_also_when_a_rank_only_keeps_in_step(path, ranks, monkeypatch):
    parts = []

    def note_own(gathered, mine):
        parts.append(mine)
        gathered[0] = mine

    monkeypatch.setattr(stepping.dist, "all_gather_object", note_own)
    alone = policy_engine(path)
    whole = gradients_of(alone)
    expected = learner_of(alone, "grpo").update(columns()).metrics
    seen = []
    for rank in range(ranks):
        engine = as_rank(policy_engine(path), rank, ranks)
        seen += [gradients_of(engine)]
        learner_of(engine, "grpo", micro_batch_tokens=24).update(columns())
    total = sum(gradients[0] for gradients in seen)
    assert (total - whole[0]).abs().max() < 1e-5 * max(1.0, float(whole[0].abs().max()))
    loss = sum(part.get("policy/loss", 0.0) for part in parts)
    assert loss == pytest.approx(expected["policy/loss"], abs=1e-5)
    # three trees of at most 24 tokens: a fourth and fifth rank have none and only keep in step
    assert parts.count({}) == max(0, ranks - 3)


def test_tokens_of_the_environment_change_no_bit_whatever_their_columns_hold(path):
    batch = batch_of(
        sample(0, 0, [5, 6], [10, 11, 12, 13], turns=[0, -1, -1, 1]), sample(0, 1, [5, 6], [14, 15], turns=[0, 0])
    )
    results = []
    for filler in (0.0, NAN, 1e4):
        column = np.array([-4.0, filler, filler, -4.5, -4.0, -4.2], np.float32)
        engine = policy_engine(path)
        inputs = StepInputs(0, batch, scores_of(1.0, 0.0), old=column, reference=column)
        result = learner_of(engine).update(inputs)
        assert result.applied
        results.append((parameters_of(engine), result.metrics))
    for parameters, metrics in results[1:]:
        assert all(map(torch.equal, parameters, results[0][0])) and metrics == results[0][1]


def test_a_loss_that_is_not_finite_skips_the_step_and_leaves_every_bit(path):
    engine = policy_engine(path)
    before = parameters_of(engine)
    bad = columns().reference.copy()
    bad[3] = NAN
    result = learner_of(engine).update(columns(reference=bad))
    assert not result.applied and result.skipped == 1 and math.isnan(result.metrics["policy/loss"])
    assert all(map(torch.equal, before, parameters_of(engine)))
    assert engine.steps == 0 and not engine._adamw.state and learner_of(engine).update(columns()).applied


def test_one_bad_minibatch_of_three_is_skipped_and_the_others_metrics_remain(path):
    engine = policy_engine(path)
    bad = columns().reference.copy()
    bad[0] = NAN
    result = learner_of(engine, minibatches=3).update(columns(reference=bad))
    assert result.applied and result.skipped == 1 and engine.steps == 2
    assert math.isfinite(result.metrics["policy/loss"]) and math.isfinite(result.metrics["policy/grad_norm"])


def test_nothing_with_a_score_is_a_step_that_does_nothing(path):
    engine = policy_engine(path)
    before = parameters_of(engine)
    result = learner_of(engine).update(columns(scores=scores_of(*[NAN] * 9)))
    assert result.applied and result.skipped == 0 and result.metrics == {"policy/rows_trained": 0.0}
    assert engine.steps == 0 and all(map(torch.equal, before, parameters_of(engine)))


@pytest.mark.parametrize(("epochs", "minibatches", "steps"), [(1, 1, 1), (2, 1, 2), (2, 3, 6), (1, 9, 3)])
def test_an_update_takes_a_step_for_each_minibatch_of_each_epoch(path, epochs, minibatches, steps):
    engine = policy_engine(path, lr=1.0e-4, warmup_steps=steps)
    learner = learner_of(engine, epochs=epochs, minibatches=minibatches)
    result = learner.update(columns())
    assert engine.steps == steps  # three groups: never more minibatches than those
    assert result.metrics["policy/lr"] == pytest.approx(1.0e-4 * (steps + 1) / 2 / steps)


def test_details_are_the_rows_own_logprobs_kl_advantages_and_values(path):
    engine = policy_engine(path)
    with torch.no_grad():
        lp = plain_logprobs(engine.module, BATCH)[0].numpy()
    inputs = columns(scores=scores_of(NAN, *VALUES[1:]))
    experience = build_experience(inputs, Method(PRESETS["grpo"]))
    untrained, shown = learner_of(engine, micro_batch_tokens=24).update(inputs, show_rows=(0, 7)).details
    mine = slice(int(BATCH.offsets[7]), int(BATCH.offsets[8]))
    assert shown.row == 7 and shown.sample.token_ids.tolist() == BATCH.response_of(7).tolist()
    assert shown.logprobs == pytest.approx(lp[mine], abs=1e-5)
    d = inputs.reference[mine] - lp[mine]
    assert shown.token_kl == pytest.approx(np.exp(d) - d - 1.0, abs=1e-4)
    assert shown.advantages == pytest.approx(experience.advantages_BT[7, : BATCH.lengths[7]].numpy())
    assert shown.values == pytest.approx(inputs.values[mine])
    assert np.isnan(untrained.logprobs).all() and (untrained.advantages == 0.0).all()


def test_a_reward_makes_its_sample_likelier_and_the_other_less(path):
    engine = policy_engine(path)
    batch = batch_of(sample(0, 0, [5, 6], [10, 11, 12]), sample(0, 1, [5, 6], [20, 21]))
    learner = learner_of(engine, "dapo")
    before = plain_logprobs(engine.module, batch)[0]
    for step in range(3):
        learner.update(StepInputs(step, batch, scores_of(1.0, 0.0)))
    gain = plain_logprobs(engine.module, batch)[0] - before
    assert gain[:3].sum() > 0.1 and gain[3:].sum() < -0.1


@pytest.mark.parametrize(("tied", "dtype"), [(True, "float32"), (False, "bfloat16")])
def test_the_published_buckets_are_the_parameters_and_their_digest_is_last(tmp_path, tied, dtype):
    engine = policy_engine(make_tiny_model(tmp_path / "m", tied=tied), dtype=dtype)
    *buckets, summary = learner_of(engine).weights(max_bytes=1 << 17)
    assert summary.digest == digest_buckets([b.digest() for b in buckets])
    assert summary.nbytes == sum(p.nbytes for p in engine.module.parameters())
    assert len(buckets) > 2 and [b.index for b in buckets] == list(range(len(buckets)))
    assert [b.last for b in buckets] == [False] * (len(buckets) - 1) + [True]
    assert all(b.data.nbytes <= 1 << 17 or len(b.names) == 1 for b in buckets)
    found = [pair for bucket in buckets for pair in tensors_of(bucket)]
    expected = list(engine.module.named_parameters())
    assert [name for name, _ in found] == [name for name, _ in expected]
    assert ("lm_head.weight" in dict(found)) == (not tied)
    assert all(t.dtype == p.dtype and torch.equal(t, p) for (_, t), (_, p) in zip(found, expected, strict=True))


def test_the_digest_is_the_same_for_the_same_weights_and_another_after_a_step(path):
    engine = policy_engine(path)
    learner = learner_of(engine)
    digests = [list(learner.weights(1 << 20))[-1].digest for _ in range(2)]
    learner.update(columns())
    assert digests[0] == digests[1] != list(learner.weights(1 << 20))[-1].digest


def test_other_ranks_gather_along_and_publish_nothing(path):
    assert list(learner_of(as_rank(policy_engine(path), 1, 2)).weights(1 << 20)) == []


def test_saved_state_goes_on_as_if_never_interrupted(path, tmp_path):
    first, second = policy_engine(path), policy_engine(path)
    learner_of(first).update(columns(0))
    learner_of(first).save(tmp_path)
    learner_of(first).update(columns(1))
    learner_of(second).load(tmp_path)
    learner_of(second).update(columns(1))
    assert all(map(torch.equal, parameters_of(first), parameters_of(second)))


@pytest.mark.parametrize("load", [load_policy, load_critic])
def test_no_forward_drops_anything_whatever_the_models_config_says(path, tmp_path, load):
    model = load_policy(ModelSettings(str(path), dtype="float32"))
    model.config.attention_dropout = 0.5
    model.save_pretrained(tmp_path)
    loaded = load(ModelSettings(str(tmp_path), dtype="float32"))
    assert loaded.training
    assert all(getattr(m, "attention_dropout", 0.0) == 0.0 for m in loaded.modules())
    trunk = loaded.trunk if hasattr(loaded, "trunk") else loaded.model
    ids = torch.arange(4, 20)[None]
    assert torch.equal(trunk(input_ids=ids).last_hidden_state, trunk(input_ids=ids).last_hidden_state)
