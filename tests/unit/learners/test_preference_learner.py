"""The preference learner on the plain engine: DPO's start, its direction, and pairs that no cut takes apart."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from actors.models.forward import to_tensors
from actors.models.packing import micro_batches
from learners import preference, stepping
from learners.methods.method import StepInputs, UpdateSettings, assemble
from learners.methods.presets import PreferenceSettings
from learners.preference import PreferenceLearner
from tests.fixtures.columns import (
    CPU,
    as_rank,
    batch_of,
    gradients_of,
    parameters_of,
    plain_logprobs,
    policy_engine,
    random_batch,
    read_only,
    sample,
    scores_of,
)
from tests.fixtures.tiny_model import make_tiny_model

PAIRS = random_batch(5, [4, 3, 6, 2], [[5, 2], [3, 4], [6, 6], [1, 9]], shuffle=True)
TOKENS = len(PAIRS.token_ids)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


def learner_of(engine, budget=4096, **settings):
    return PreferenceLearner(engine, PreferenceSettings(**settings), UpdateSettings(micro_batch_tokens=budget))


def inputs_of(reference, batch=PAIRS, old=None):
    return StepInputs(0, batch, scores_of(*[0.0] * len(batch)), reference=reference, old=old)


def logprobs_of(path, batch=PAIRS):
    with torch.no_grad():
        return plain_logprobs(policy_engine(path).module, batch)[0].numpy().astype(np.float32)


def shifted(path, by=0.3, batch=PAIRS):
    return logprobs_of(path, batch) + np.random.default_rng(1).normal(0.0, by, len(batch.token_ids)).astype(np.float32)


def test_a_policy_that_is_its_reference_starts_at_log_two_without_a_margin(path):
    result = learner_of(policy_engine(path), budget=20).update(inputs_of(read_only(logprobs_of(path))))
    assert result.metrics["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert result.metrics["preference/margin"] == pytest.approx(0.0, abs=1e-5)
    assert result.applied


def test_steps_raise_margin_and_accuracy_and_lower_the_loss(path):
    engine = policy_engine(path)
    learner = learner_of(engine)
    inputs = inputs_of(logprobs_of(path))
    seen = [learner.update(inputs).metrics for _ in range(4)]
    assert engine.steps == 4
    assert seen[-1]["preference/margin"] > seen[1]["preference/margin"] > 0.0
    assert seen[-1]["preference/accuracy"] == 1.0
    assert seen[-1]["loss"] < seen[1]["loss"] < seen[0]["loss"]
    assert seen[-1]["rewards/chosen"] > seen[-1]["rewards/rejected"]


def test_one_pair_by_hand(path):
    batch = batch_of(sample(0, 1, [5, 6], [9]), sample(0, 0, [5, 6], [7, 8]))  # the rejected row stands first
    reference = logprobs_of(path, batch) - np.array([0.5, 1.0, 1.0], np.float32)
    metrics = learner_of(policy_engine(path), beta=0.2).update(inputs_of(reference, batch)).metrics
    # u = 2, v = 0.5: rewards 0.4 and 0.1, x = 0.3, loss = log(1 + exp(-0.3))
    assert metrics["rewards/chosen"] == pytest.approx(0.4, abs=1e-5)
    assert metrics["rewards/rejected"] == pytest.approx(0.1, abs=1e-5)
    assert metrics["preference/margin"] == pytest.approx(0.3, abs=1e-5)
    assert metrics["preference/accuracy"] == 1.0
    assert metrics["loss"] == pytest.approx(math.log1p(math.exp(-0.3)), abs=1e-5)


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("budget", [1, 20, 4096])
def test_cpo_s_nll_is_over_the_chosen_tokens_of_the_whole_batch_however_it_is_cut(path, budget, ranks, monkeypatch):
    monkeypatch.setattr(stepping.dist, "all_gather_object", lambda out, mine: out.__setitem__(0, mine))
    lp = logprobs_of(path).astype(np.float64)
    rows = np.repeat(np.arange(len(PAIRS)), PAIRS.lengths)
    sums, chosen = np.bincount(rows, lp), PAIRS.sample_indices == 0
    gaps = [sums[c] - sums[r] for c in np.flatnonzero(chosen) for r in np.flatnonzero(~chosen)
            if PAIRS.group_rows[c] == PAIRS.group_rows[r]]  # fmt: skip
    by_hand = np.mean(np.log1p(np.exp(-0.1 * np.array(gaps)))) - 3.0 * sums[chosen].sum() / PAIRS.lengths[chosen].sum()
    found = 0.0
    for rank in range(ranks):
        learner = learner_of(as_rank(policy_engine(path), rank, ranks), budget, loss="cpo", nll_coef=3.0)
        found += learner.update(inputs_of(None)).metrics.get("loss", 0.0)
    assert found == pytest.approx(by_hand, abs=1e-5)


@pytest.mark.parametrize("loss", ["sigmoid", "ipo", "simpo", "cpo", "orpo"])
def test_the_gradient_is_the_same_for_any_budget_row_order_and_ranks(path, loss, monkeypatch):
    monkeypatch.setattr(stepping.dist, "all_gather_object", lambda out, mine: out.__setitem__(0, mine))
    reference = shifted(path)
    order = np.random.default_rng(3).permutation(len(PAIRS))
    tokens = np.concatenate([np.arange(PAIRS.offsets[r], PAIRS.offsets[r + 1]) for r in order])
    turned = inputs_of(reference[tokens], PAIRS.take(order))

    def run(inputs, budget, rank=0, ranks=1):
        engine = as_rank(policy_engine(path), rank, ranks)
        seen = gradients_of(engine)
        return learner_of(engine, budget, loss=loss).update(inputs).metrics, seen[0]

    metrics, whole = run(inputs_of(reference), 4096)
    close = 1e-5 * max(1.0, float(whole.abs().max()))
    assert whole.abs().max() > 1e-4
    for inputs in (inputs_of(reference), turned):
        for budget in (1, 24):
            found, gradient = run(inputs, budget)
            assert (gradient - whole).abs().max() < close
            assert found["loss"] == pytest.approx(metrics["loss"], abs=1e-5)
        parts = [run(inputs, 1, rank, 3) for rank in range(3)]
        assert (sum(g for _, g in parts) - whole).abs().max() < close
        assert sum(m["loss"] for m, _ in parts) == pytest.approx(metrics["loss"], abs=1e-5)
        assert sum(m["preference/accuracy"] for m, _ in parts) == pytest.approx(metrics["preference/accuracy"])


def test_every_forward_of_any_rank_holds_whole_pairs_however_small_the_budget(path, monkeypatch):
    monkeypatch.setattr(stepping.dist, "all_gather_object", lambda out, mine: out.__setitem__(0, mine))
    seen = []

    monkeypatch.setattr(stepping, "to_tensors", lambda micro, device: seen.append(micro) or to_tensors(micro, device))
    for rank in range(2):
        learner_of(as_rank(policy_engine(path), rank, 2), budget=1).update(inputs_of(logprobs_of(path)))
    rows = [row for micro in seen for row in micro.rows.tolist()]
    assert set(rows) == set(range(len(PAIRS))) and len(seen) >= 2
    for micro in seen:
        _, counts = np.unique(PAIRS.group_rows[micro.rows], return_counts=True)
        assert counts.tolist() == [2] * len(counts)


def test_a_pair_without_one_of_its_sides_is_refused(path):
    batch = batch_of(sample(0, 0, [5], [7]), sample(0, 1, [5], [8]), sample(1, 0, [5], [7]), sample(2, 1, [5], [8]))
    with pytest.raises(ValueError, match="both sides of every pair"):
        learner_of(policy_engine(path)).update(inputs_of(np.zeros(4, np.float32), batch))
    with pytest.raises(ValueError, match="both sides of every pair"):
        preference.sides(np.array([0, 0, 1]), np.array([0, 1, 0]))


def test_implicit_rewards_are_beta_times_the_gap_an_empty_response_counting_zero():
    batch = batch_of(sample(4, 1, [5], []), sample(2, 0, [5], [7, 8]), sample(4, 0, [5], [6]), sample(2, 1, [5], [9]))
    old, reference = np.array([-1.0, -1.0, -2.0, -3.0], np.float32), np.array([-2.0, -1.5, -1.0, -3.5], np.float32)
    learner = PreferenceLearner(None, PreferenceSettings(beta=0.5), UpdateSettings())
    rewards = learner.row_rewards(inputs_of(reference, batch, old))
    # 0.5 * (lp - ref), in the rows' order: an empty response, (1 + 0.5), (-2 + 1), (-3 + 3.5)
    assert rewards.tolist() == pytest.approx([0.0, 0.75, -0.5, 0.25])
    stored = dataclasses.replace(inputs_of(None, batch, old), row_reference=np.array([0.0, -3.5, -1.0, -3.5]))
    assert learner.row_rewards(stored).tolist() == pytest.approx(rewards.tolist())


def test_rewards_of_a_length_averaged_loss_need_no_reference():
    batch = batch_of(sample(0, 0, [5], [7, 8]), sample(0, 1, [5], [9]))
    learner = PreferenceLearner(None, PreferenceSettings(loss="simpo", beta=2.0), UpdateSettings())
    rewards = learner.row_rewards(inputs_of(None, batch, np.array([-1.0, -2.0, -3.0], np.float32)))
    assert rewards.tolist() == pytest.approx([2.0 * -1.5, 2.0 * -3.0])


def test_rewards_and_judgements_name_the_column_that_their_step_lacks(path):
    batch = batch_of(sample(0, 0, [5], [7, 8]), sample(1, 0, [5], [9]))
    some = np.zeros(3, np.float32)
    pairs, judged = learner_of(policy_engine(path)), learner_of(policy_engine(path), loss="kto", judged=True)
    for lacking, take in (
        ("old", lambda: pairs.row_logprobs(inputs_of(some, batch))),
        ("old", lambda: pairs.row_rewards(inputs_of(some, batch))),
        ("reference", lambda: pairs.row_rewards(inputs_of(None, batch, some))),
        ("old", lambda: judged.kto_baseline(inputs_of(some, batch))),
        ("reference", lambda: judged.kto_baseline(inputs_of(None, batch, some))),
        ("reference", lambda: judged.update(dataclasses.replace(inputs_of(None, batch), kto_baseline=0.1))),
        ("kto_baseline", lambda: judged.update(inputs_of(some, batch))),
    ):
        with pytest.raises(ValueError, match=f"the method needs {lacking}, which this step has not"):
            take()


def test_kto_compares_with_the_mean_gap_of_mismatched_samples_never_below_zero(path):
    learner = PreferenceLearner(None, PreferenceSettings(loss="kto"), UpdateSettings())
    batch = batch_of(sample(0, 0, [5], [7, 8]), sample(1, 0, [5], [9]))
    reference = np.array([-2.0, -2.0, -3.0], np.float32)
    assert learner.kto_baseline(inputs_of(reference, batch, reference + 0.5)) == pytest.approx((1.0 + 0.5) / 2)
    assert learner.kto_baseline(inputs_of(reference, batch, reference - 0.5)) == 0.0
    with pytest.raises(ValueError, match="KL baseline"):
        learner_of(policy_engine(path), loss="kto").update(inputs_of(logprobs_of(path)))
    inputs = dataclasses.replace(inputs_of(logprobs_of(path)), kto_baseline=0.3)
    metrics = learner_of(policy_engine(path), loss="kto", beta=1.0).update(inputs).metrics
    # u = v = 0: half of (1 - sigmoid(-0.3)) and half of (1 - sigmoid(0.3))
    assert metrics["loss"] == pytest.approx(0.5, abs=1e-5)


def test_a_reference_that_is_not_finite_skips_the_step_and_leaves_every_bit(path):
    engine = policy_engine(path)
    before = parameters_of(engine)
    reference = logprobs_of(path)
    reference[0] = math.nan
    result = learner_of(engine).update(inputs_of(reference))
    assert not result.applied and result.skipped == 1
    assert all(map(torch.equal, before, parameters_of(engine)))


def test_pairs_share_their_prompt_in_the_forward(path):
    (micro,) = micro_batches(PAIRS, list(range(len(PAIRS))), 4096)
    assert len(to_tensors(micro, CPU).input_ids[0]) == 4 + 3 + 6 + 2 + TOKENS
    column = learner_of(policy_engine(path)).logprobs(PAIRS)
    assert np.abs(assemble([column], TOKENS) - logprobs_of(path)).max() < 1e-5


def test_judged_responses_move_apart_by_their_labels_and_any_cut_is_the_same(path):
    batch = random_batch(9, [4, 3, 5, 2], [[5], [3], [6], [4]])
    reference = logprobs_of(path, batch)

    def run(budget, steps=1):
        engine = policy_engine(path)
        seen = gradients_of(engine)
        learner = learner_of(engine, budget, loss="kto", judged=True, undesirable_weight=2.0)
        inputs = StepInputs(0, batch, scores_of(1.0, 0.0, 1.0, 0.0), reference=reference, kto_baseline=0.1)
        return [learner.update(inputs).metrics for _ in range(steps)], seen

    (first, *_, last), seen = run(4096, steps=5)
    # u = 0: 1 - sigmoid(-0.1 * 0.1) for the two desirable, twice 1 - sigmoid(0.01) for the others
    by_hand = (2 / (1 + math.exp(-0.01)) + 2 * 2 / (1 + math.exp(0.01))) / 4
    assert first["loss"] == pytest.approx(by_hand, abs=1e-5)
    assert last["rewards/chosen"] > 0.0 > last["rewards/rejected"]
    close = 1e-5 * max(1.0, float(seen[0].abs().max()))
    assert (run(1)[1][0] - seen[0]).abs().max() < close


def test_only_kto_learns_from_judged_responses():
    with pytest.raises(ValueError, match="only kto"):
        PreferenceSettings(loss="sigmoid", judged=True)
