"""From a step's columns to losses' inputs, by hand: who is masked, which advantage, which rows step together."""

import dataclasses
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from actors.models.packing import lay_out, plant
from actors.types import FinishReason, SampleBatch, ScoreBatch
from learners.experience import build_experience, minibatch_rows, packed_index, pad, slot_index
from learners.methods.method import Method, StepInputs, UpdateSettings, needs_old
from learners.methods.presets import PRESETS, TOKEN_ADVANTAGES
from learners.methods.row_advantages import ROW_ADVANTAGES
from tests.fixtures.columns import batch_of, random_batch, read_only, sample, scores_of

NAN = float("nan")
GRPO = Method(PRESETS["grpo"])
PPO_PLAIN = Method(dataclasses.replace(PRESETS["ppo"], whiten=False), gamma=0.5, gae_lambda=0.5)


def test_grpo_gives_each_token_its_rows_distance_from_the_group_mean_in_standard_deviations():
    batch = batch_of(sample(0, 0, [5], [6, 7]), sample(0, 1, [5], [6]), sample(0, 2, [5], [8, 8, 8]))
    found = build_experience(StepInputs(0, batch, scores_of(1.0, 2.0, 3.0)), GRPO)
    # mean 2, unbiased std 1
    assert found.mask_BT.tolist() == [[True, True, False], [True, False, False], [True, True, True]]
    expected = torch.tensor([[-1.0, -1.0, 0.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    assert torch.allclose(found.advantages_BT, expected, atol=2e-6)
    assert found.returns_BT is None and found.old_BT is None and found.sequence_kl_B is None
    assert found.roll_BT.tolist() == [[-1.0, -1.0, 0.0], [-1.0, 0.0, 0.0], [-1.0, -1.0, -1.0]]


def test_ppo_puts_the_score_on_the_last_token_the_kl_on_each_and_discounts_by_gae():
    batch = batch_of(sample(0, 0, [5], [6, 7]))
    inputs = StepInputs(
        0,
        batch,
        scores_of(1.0),
        kl_coef=0.1,
        old=np.array([-1.0, -2.0], np.float32),
        reference=np.array([-2.0, -1.0], np.float32),
        values=np.array([0.5, 0.25], np.float32),
    )
    found = build_experience(inputs, PPO_PLAIN)
    # k1 = old - ref = 1, -1; rewards = -0.1, 1 + 0.1. delta_1 = 1.1 - 0.25 = 0.85;
    # delta_0 = -0.1 + 0.5 * 0.25 - 0.5 = -0.475; G_0 = -0.475 + 0.25 * 0.85 = -0.2625
    assert found.advantages_BT.tolist()[0] == pytest.approx([-0.2625, 0.85])
    assert found.returns_BT.tolist()[0] == pytest.approx([0.2375, 1.1])
    assert found.sequence_kl_B.tolist() == [0.0]
    whitened = build_experience(inputs, dataclasses.replace(PPO_PLAIN, preset=PRESETS["ppo"]))
    # mean 0.29375, deviation 0.55625, unbiased variance 2 * 0.55625^2: one standard deviation is sqrt(2) * 0.55625
    assert whitened.advantages_BT.tolist()[0] == pytest.approx([-(0.5**0.5), 0.5**0.5], rel=1e-5)
    assert whitened.returns_BT.tolist() == found.returns_BT.tolist()


@pytest.mark.parametrize("missing", [NAN, float("inf")])
@pytest.mark.parametrize("name", ["grpo", "ppo", "rloo"])
def test_a_failed_score_takes_out_its_own_row_and_no_bit_of_another(name, missing):
    method = Method(PRESETS[name])
    rows = [sample(0, i, [5], [6] * (i + 1)) for i in range(3)] + [sample(1, i, [5], [7]) for i in range(2)]

    def build(samples, values):
        base = np.concatenate([np.arange(len(s.token_ids)) for s in samples]).astype(np.float32)
        lists = {"old": -1.0 - 0.5 * base, "reference": -2.0 + 0.25 * base, "values": 0.1 * base}
        return build_experience(StepInputs(0, batch_of(*samples), scores_of(*values), kl_coef=0.1, **lists), method)

    with_bad = build(rows, [1.0, missing, 4.0, 0.5, 2.0])
    without = build([r for i, r in enumerate(rows) if i != 1], [1.0, 4.0, 0.5, 2.0])
    keep = [0, 2, 3, 4]
    assert not with_bad.mask_BT[1].any() and with_bad.advantages_BT[1].tolist() == [0.0, 0.0, 0.0]
    assert torch.equal(with_bad.mask_BT[keep], without.mask_BT)
    assert torch.equal(with_bad.advantages_BT[keep], without.advantages_BT)
    assert with_bad.kept_rows.tolist() == keep
    if with_bad.returns_BT is not None:
        assert torch.equal(with_bad.returns_BT[keep], without.returns_BT)


def test_environment_tokens_are_context_and_the_score_sits_on_the_last_token_the_policy_wrote():
    batch = batch_of(sample(0, 0, [5], [6, 7, 8, 9], turns=[0, -1, 1, -1]))
    columns = {name: np.array([0.0, NAN, 0.0, NAN], np.float32) for name in ("old", "reference", "values")}
    found = build_experience(StepInputs(0, batch, scores_of(2.0), kl_coef=0.1, **columns), PPO_PLAIN)
    assert found.mask_BT.tolist() == [[True, False, True, False]]
    # reward 2 on token 2; gamma lambda = 0.25 carries it over the hole to token 0
    assert found.advantages_BT.tolist() == [[0.5, 0.0, 2.0, 0.0]]
    assert found.sequence_kl_B.tolist() == [0.0]


def test_overlong_rows_leave_the_loss_but_not_the_groups_statistics():
    cut = sample(0, 0, [5], [6, 7], finish=FinishReason.LENGTH)
    batch = batch_of(cut, sample(0, 1, [5], [6]), sample(0, 2, [5], [8]))
    inputs = StepInputs(0, batch, scores_of(1.0, 2.0, 3.0))
    dapo = build_experience(inputs, Method(PRESETS["dapo"]))
    assert dapo.mask_BT.any(dim=1).tolist() == [False, True, True]
    assert dapo.advantages_BT[:, 0].tolist() == pytest.approx([0.0, 0.0, 1.0], abs=2e-6)
    assert build_experience(inputs, GRPO).mask_BT.any(dim=1).tolist() == [True, True, True]


@pytest.mark.parametrize(
    ("name", "lacking"),
    [("ppo", "values"), ("ppo", "old"), ("ppo", "reference"), ("rloo", "old"), ("rloo", "reference")],
)
def test_a_method_names_the_column_that_its_step_lacks(name, lacking):
    columns = {column: np.zeros(2, np.float32) for column in ("old", "reference", "values") if column != lacking}
    batch = batch_of(sample(0, 0, [5], [6]), sample(0, 1, [5], [7]))
    with pytest.raises(ValueError, match=f"the method needs {lacking}, which this step has not"):
        build_experience(StepInputs(0, batch, scores_of(1.0, 0.0), kl_coef=0.1, **columns), Method(PRESETS[name]))


def test_rloo_subtracts_the_rows_summed_kl_before_it_compares():
    batch = batch_of(sample(0, 0, [5], [6, 7]), sample(0, 1, [5], [6]))
    old, ref = np.array([-1.0, -1.0, -1.0], np.float32), np.array([-2.0, -3.0, -1.0], np.float32)
    inputs = StepInputs(0, batch, scores_of(1.0, 0.0), kl_coef=0.1, old=old, reference=ref)
    found = build_experience(inputs, Method(PRESETS["rloo"]))
    # S = 1 - 0.1 * 3 = 0.7 and 0: each minus the other
    assert found.advantages_BT[:, 0].tolist() == pytest.approx([0.7, -0.7])
    assert found.sequence_kl_B.tolist() == [3.0, 0.0]


@pytest.mark.parametrize(("ref", "expected"), [(13.0, -14.0 + 1.0), (1e4, -20.0 + 1.0), (-1e4, 20.0 + 1.0)])
def test_one_token_moves_the_kl_that_a_controller_reads_by_twenty_nats_at_most(ref, expected):
    batch = batch_of(sample(0, 0, [5], [6, 7]), sample(0, 1, [5], [6]))
    old, reference = np.array([-1.0, -1.0, -1.0], np.float32), np.array([ref, -2.0, -1.0], np.float32)
    found = build_experience(StepInputs(0, batch, scores_of(1.0, 0.0), old=old, reference=reference), GRPO)
    assert found.sequence_kl_B.tolist() == [expected, 0.0]


def test_reinforce_pp_sums_the_rewards_to_come_and_whitens_over_the_batch():
    batch = batch_of(sample(0, 0, [5], [6, 7]), sample(1, 0, [5], [6]))
    old, ref = np.array([-1.0, -2.0, -1.0], np.float32), np.array([-2.0, -1.0, -1.0], np.float32)
    inputs = StepInputs(0, batch, scores_of(1.0, 0.0), kl_coef=0.1, old=old, reference=ref)
    plain = Method(dataclasses.replace(PRESETS["reinforce_pp"], whiten=False), gamma=0.5)
    # rewards -0.1, 1.1 and 0: to go -0.1 + 0.5 * 1.1 = 0.45, 1.1, 0
    assert build_experience(inputs, plain).advantages_BT.tolist()[0] == pytest.approx([0.45, 1.1])
    whitened = build_experience(inputs, Method(PRESETS["reinforce_pp"])).advantages_BT
    # to go 1.0, 1.1, 0 without discount: mean 0.7, unbiased variance 0.37
    assert whitened[0].tolist() == pytest.approx([0.3 / 0.37**0.5, 0.4 / 0.37**0.5], rel=1e-5)
    assert whitened[1].tolist() == pytest.approx([-0.7 / 0.37**0.5, 0.0], rel=1e-5)


def test_reinforce_pp_baseline_takes_the_group_mean_off_and_whitens_over_tokens():
    batch = batch_of(sample(0, 0, [5], [6, 7]), sample(0, 1, [5], [6]))
    found = build_experience(StepInputs(0, batch, scores_of(1.0, 0.0)), Method(PRESETS["reinforce_pp_baseline"]))
    # 0.5, 0.5, -0.5: mean 1/6, unbiased variance 1/3
    expected = [(0.5 - 1 / 6) * 3**0.5, (-0.5 - 1 / 6) * 3**0.5]
    assert found.advantages_BT[:, 0].tolist() == pytest.approx(expected, rel=1e-5)


def test_remax_compares_each_score_with_its_prompts_greedy_one():
    batch = batch_of(sample(0, 0, [5], [6, 7]), sample(1, 0, [5], [6]), sample(2, 0, [5], [6]))
    inputs = StepInputs(0, batch, scores_of(1.0, 0.25, 1.0), baseline=np.array([0.25, 1.0, NAN]))
    found = build_experience(inputs, Method(PRESETS["remax"]))
    assert found.advantages_BT.tolist() == [[0.75, 0.75], [-0.75, 0.0], [0.0, 0.0]]
    with pytest.raises(ValueError, match="greedy responses"):
        build_experience(dataclasses.replace(inputs, baseline=None), Method(PRESETS["remax"]))


def test_opo_weighs_the_groups_baseline_by_length():
    batch = batch_of(sample(0, 0, [5], [6, 7, 8]), sample(0, 1, [5], [6]))
    found = build_experience(StepInputs(0, batch, scores_of(1.0, 0.0)), Method(PRESETS["opo"]))
    # baseline (3 * 1 + 1 * 0) / 4
    assert found.advantages_BT[:, 0].tolist() == pytest.approx([0.25, -0.75])


def test_dapo_takes_flat_groups_out_of_the_loss_and_the_token_count():
    rows = [sample(0, 0, [5], [6]), sample(0, 1, [5], [7]), sample(1, 0, [5], [6]), sample(1, 1, [5], [7])]
    inputs = StepInputs(0, batch_of(*rows), scores_of(1.0, 1.0, 1.0, 0.0))
    assert build_experience(inputs, Method(PRESETS["dapo"])).kept_rows.tolist() == [2, 3]
    assert build_experience(inputs, GRPO).kept_rows.tolist() == [0, 1, 2, 3]


def test_an_empty_response_is_masked_and_still_counts_in_its_groups_statistics():
    batch = batch_of(sample(0, 0, [5], []), sample(0, 1, [5], [6]), sample(0, 2, [5], [8]))
    found = build_experience(StepInputs(0, batch, scores_of(1.0, 2.0, 3.0)), GRPO)
    assert found.kept_rows.tolist() == [1, 2]
    assert found.advantages_BT[:, 0].tolist() == pytest.approx([0.0, 0.0, 1.0], abs=2e-6)


@pytest.mark.parametrize("name", ["grpo", "ppo"])
def test_the_order_of_rows_changes_no_rows_numbers(name):
    rng = np.random.default_rng(0)
    batch = random_batch(1, [3, 4], [[2, 5, 1], [3, 3, 4]])
    columns = {k: rng.normal(size=len(batch.token_ids)).astype(np.float32) for k in ("old", "reference", "values")}
    values = rng.normal(size=6)
    order = rng.permutation(6)
    tokens = np.concatenate([np.arange(batch.offsets[r], batch.offsets[r + 1]) for r in order])

    def build(batch, columns, values):
        return build_experience(StepInputs(0, batch, scores_of(*values), kl_coef=0.1, **columns), Method(PRESETS[name]))

    found = build(batch, columns, values)
    turned = build(batch.take(order), {k: v[tokens] for k, v in columns.items()}, values[order])
    assert torch.equal(turned.mask_BT, found.mask_BT[order])
    assert torch.allclose(turned.advantages_BT, found.advantages_BT[order], atol=1e-6)


def test_columns_that_ray_lends_read_only_are_used_without_a_warning_and_never_aliased():
    batch = random_batch(1, [3], [[2, 3]])
    lent = SampleBatch(**{name: read_only(getattr(batch, name)) for name in SampleBatch.__slots__})
    columns = {k: read_only(np.full(5, -1.0, np.float32)) for k in ("old", "reference", "values")}
    scores = ScoreBatch(read_only(np.array([1.0, 0.0])), {})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = build_experience(StepInputs(0, lent, scores, kl_coef=0.1, **columns), Method(PRESETS["ppo"]))
        lay_out(lent, plant(lent, [0, 1], 100))
    found.old_BT.zero_()
    assert columns["old"].tolist() == [-1.0] * 5


def test_a_flat_column_is_padded_with_zeros_and_its_gradient_comes_back_flat():
    batch = batch_of(sample(0, 0, [5], [6, 7]), sample(0, 1, [5], []), sample(1, 0, [5], [8]))
    assert slot_index(batch, np.array([2, 0])).tolist() == [[2, -1], [0, 1]]
    flat = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    padded = pad(flat, slot_index(batch, np.arange(3)))
    assert padded.tolist() == [[1.0, 2.0], [0.0, 0.0], [3.0, 0.0]]
    (padded * torch.tensor([[1.0, 2.0], [5.0, 5.0], [3.0, 5.0]])).sum().backward()
    assert flat.grad.tolist() == [1.0, 2.0, 3.0]
    micro = lay_out(batch, plant(batch, [2, 1, 0], 100))
    assert micro.slots.tolist() == [2, 0, 1]
    assert packed_index(micro).tolist() == [[0, -1], [-1, -1], [1, 2]]


@given(
    st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=7),
    st.integers(1, 5),
    st.integers(0, 3),
)
def test_minibatches_cover_every_kept_row_once_with_groups_whole(lengths, minibatches, epoch):
    batch = random_batch(0, [2] * len(lengths), lengths, shuffle=True)
    values = np.arange(len(batch), dtype=np.float64)
    values[0] = NAN
    experience = build_experience(StepInputs(0, batch, scores_of(*values)), GRPO)
    parts = minibatch_rows(experience, epoch, minibatches, seed=7)
    assert sorted(int(r) for part in parts for r in part) == list(range(1, len(batch)))
    groups = [set(batch.group_rows[part].tolist()) for part in parts]
    assert sum(map(len, groups)) == len(set().union(*groups)) and all(groups)
    assert len(parts) == min(minibatches, len(set().union(*groups)))


def test_minibatches_are_drawn_anew_each_epoch_and_the_same_from_the_same_seed():
    batch = random_batch(0, [2] * 12, [[3, 3]] * 12)
    experience = build_experience(StepInputs(0, batch, scores_of(*range(24))), GRPO)

    def parts(epoch, seed):
        return [part.tolist() for part in minibatch_rows(experience, epoch, 3, seed)]

    assert parts(0, 5) == parts(0, 5)
    assert parts(0, 5) != parts(1, 5) and parts(0, 5) != parts(0, 6)
    assert [len(p) for p in parts(0, 5)] == [8, 8, 8]


def test_a_step_without_a_score_trains_on_nothing():
    batch = random_batch(0, [2], [[3, 3]])
    experience = build_experience(StepInputs(0, batch, scores_of(NAN, NAN)), GRPO)
    assert minibatch_rows(experience, 0, 1, 0) == [] and minibatch_rows(experience, 0, 2, 0) == []


def test_log_probs_from_before_are_needed_for_a_second_look_or_a_kl_in_the_reward():
    assert not needs_old(GRPO, UpdateSettings())
    assert needs_old(GRPO, UpdateSettings(epochs=2)) and needs_old(GRPO, UpdateSettings(minibatches=2))
    assert needs_old(Method(PRESETS["ppo"]), UpdateSettings())


def test_every_preset_s_advantage_has_its_function_and_each_function_a_preset():
    named = {preset.advantage for preset in PRESETS.values()}
    assert set(ROW_ADVANTAGES) | set(TOKEN_ADVANTAGES) == named
    assert not set(ROW_ADVANTAGES) & set(TOKEN_ADVANTAGES)
