"""Advantages: every formula by hand, holes skipped, groups in any order, failed scores left out."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learners.methods.advantages import (
    Moments,
    gae,
    group_advantages,
    groups_with_spread,
    kl_penalised_rewards,
    kl_penalised_scores,
    masked_whiten,
    moments,
    opo,
    penalise_truncated,
    place_sequence_reward,
    reinforce_pp,
    reinforce_pp_baseline,
    remax,
    reward_to_go,
    spread_over_tokens,
)

NAN = math.nan


def close(actual, expected):
    torch.testing.assert_close(actual.double(), torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=1e-6)


# --- rewards ---


def test_sequence_reward_sits_on_the_last_real_token_also_after_a_hole():
    mask = torch.tensor([[1, 1, 0, 1, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]], dtype=torch.bool)
    close(place_sequence_reward(torch.tensor([5.0, 7.0, NAN]), mask), [[0, 0, 0, 5, 0], [7, 0, 0, 0, 0], [0] * 5])


def test_a_row_with_tokens_but_no_score_is_an_error_that_names_it():
    with pytest.raises(ValueError, match=r"Rows \[1\] have response tokens but no score"):
        place_sequence_reward(torch.tensor([1.0, NAN]), torch.ones(2, 2, dtype=torch.bool))


def test_missing_eos_penalty_touches_truncated_rows_only():
    close(penalise_truncated(torch.tensor([1.0, 1.0]), torch.tensor([True, False]), 0.5), [0.5, 1.0])


def test_kl_penalty_is_subtracted_per_token_within_the_mask():
    old, ref = torch.tensor([[-1.0, -2.0, NAN]]), torch.tensor([[-1.5, -1.0, 0.0]])
    mask = torch.tensor([[True, True, False]])
    close(kl_penalised_rewards(torch.tensor([[0.0, 3.0, NAN]]), old, ref, mask, 0.1), [[-0.05, 3.1, 0.0]])
    close(kl_penalised_scores(torch.tensor([3.0]), old, ref, mask, 0.1), [3.05])  # 3 - 0.1 * (0.5 - 1)


# --- GAE ---


def test_gae_gives_the_numbers_worked_out_by_hand():
    # gamma 0.5, lam 0.5. delta_2 = 4 - 3 = 1; delta_1 = 0.5 * 3 - 2 = -0.5; delta_0 = 0.5 * 2 - 1 = 0.
    # G_2 = 1; G_1 = -0.5 + 0.25 = -0.25; G_0 = 0 + 0.25 * -0.25 = -0.0625.
    rewards, values = torch.tensor([[0.0, 0.0, 4.0]]), torch.tensor([[1.0, 2.0, 3.0]])
    advantages, returns = gae(rewards, values, torch.ones(1, 3, dtype=torch.bool), 0.5, 0.5)
    close(advantages, [[-0.0625, -0.25, 1.0]])
    close(returns, [[0.9375, 1.75, 4.0]])


@pytest.mark.parametrize("poison", [0.0, NAN, math.inf, 1e4])
def test_gae_skips_a_tools_tokens_as_if_they_were_not_there(poison):
    rewards = torch.tensor([[0.0, poison, poison, 0.0, 4.0, poison]])
    values = torch.tensor([[1.0, poison, poison, 2.0, 3.0, poison]])
    mask = torch.tensor([[1, 0, 0, 1, 1, 0]], dtype=torch.bool)
    advantages, returns = gae(rewards, values, mask, 0.5, 0.5)
    close(advantages, [[-0.0625, 0, 0, -0.25, 1.0, 0]])
    close(returns, [[0.9375, 0, 0, 1.75, 4.0, 0]])


def test_gae_with_lambda_one_returns_the_discounted_rewards_whatever_the_values():
    mask = torch.ones(1, 3, dtype=torch.bool)
    _, returns = gae(torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[9.0, -3.0, 5.0]]), mask, 0.5, 1.0)
    close(returns, [[3.0, 4.0, 4.0]])


def test_gae_takes_rows_without_tokens_and_empty_widths():
    advantages, _ = gae(torch.full((2, 3), NAN), torch.full((2, 3), NAN), torch.zeros(2, 3, dtype=torch.bool), 1.0, 1.0)
    assert torch.equal(advantages, torch.zeros(2, 3))
    assert gae(torch.zeros(2, 0), torch.zeros(2, 0), torch.zeros(2, 0, dtype=torch.bool), 1.0, 1.0)[0].shape == (2, 0)


# --- whitening ---


def test_whitening_uses_bessels_variance_and_zeroes_padding():
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]], dtype=torch.bool)
    x = torch.tensor([[1.0, 2.0, NAN], [3.0, 1e4, NAN]])  # mean 2, variance (1 + 0 + 1) / 2 = 1
    close(masked_whiten(x, mask), [[-1, 0, 0], [1, 0, 0]])


def test_whitening_one_value_or_none_gives_zero():
    x = torch.tensor([[3.0, NAN]])
    assert torch.equal(masked_whiten(x, torch.tensor([[True, False]])), torch.zeros(1, 2))
    assert torch.equal(masked_whiten(x, torch.tensor([[False, False]])), torch.zeros(1, 2))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.sampled_from([0.0, 1e6]))
def test_ranks_that_exchange_moments_whiten_as_one_batch(seed, parts, offset):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(6, 5, generator=generator, dtype=torch.float64) + offset
    mask = torch.rand(6, 5, generator=generator) < 0.5
    pieces = list(zip(x.chunk(parts), mask.chunk(parts), strict=True))
    over = Moments.merge(moments(*piece) for piece in pieces)
    torch.testing.assert_close(torch.cat([masked_whiten(*p, over) for p in pieces]), masked_whiten(x, mask))


# --- groups ---

SCORES = torch.tensor([1.0, 10.0, 2.0, 5.0, NAN, 3.0, 10.0], dtype=torch.float64)
GROUPS = torch.tensor([7, -4, 7, 2, 7, 7, -4])
"""Group 7: 1, 2, 3 and one failure, interleaved; group -4: twice 10; group 2: alone."""


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("grpo", [-1, 0, 0, 0, 0, 1, 0]),  # mean 2, unbiased std 1; no spread: 0; alone: 0
        ("dr_grpo", [-1, 0, 0, 0, 0, 1, 0]),
        ("mean", [-1, 0, 0, 0, 0, 1, 0]),
        ("rloo", [-1.5, 0, 0, 0, 0, 1.5, 0]),  # 1 - (2 + 3) / 2 and so on
    ],
)
def test_groups_by_id_in_any_order_with_failures_left_out(kind, expected):
    close(group_advantages(SCORES, GROUPS, None, kind), expected)


def test_grpo_divides_by_the_unbiased_std_plus_a_millionth():
    advantages = group_advantages(torch.tensor([0.0, 4.0], dtype=torch.float64), torch.tensor([0, 0]), None, "grpo")
    assert advantages[1].item() == pytest.approx(2 / (math.sqrt(8) + 1e-6), abs=1e-12)


def test_equal_scores_that_do_not_sum_exactly_give_exactly_zero():
    for kind in ("grpo", "dr_grpo", "rloo"):
        advantages = group_advantages(torch.full((3,), 0.1, dtype=torch.float64), torch.zeros(3).long(), None, kind)
        assert torch.equal(advantages, torch.zeros(3, dtype=torch.float64))


def test_a_row_marked_invalid_is_left_out_like_a_failed_one():
    valid = torch.tensor([True] * 5 + [False, True])
    close(group_advantages(SCORES, GROUPS, valid, "mean"), [-0.5, 0, 0.5, 0, 0, 0, 0])


def test_a_nan_score_changes_no_bit_of_another_row():
    with_nan = group_advantages(SCORES, GROUPS, None, "grpo")
    keep = torch.tensor([0, 1, 2, 3, 5, 6])
    assert torch.equal(with_nan[keep], group_advantages(SCORES[keep], GROUPS[keep], None, "grpo"))


def test_groups_without_spread_are_told_apart():
    assert groups_with_spread(SCORES, GROUPS).tolist() == [True, False, True, False, True, True, False]


def test_unknown_group_advantage_names_the_known_ones():
    with pytest.raises(ValueError, match="'gae'; set it to one of grpo"):
        group_advantages(SCORES, GROUPS, None, "gae")


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["grpo", "dr_grpo", "rloo"]))
def test_the_order_of_rows_changes_no_bit(seed, kind):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(24, generator=generator, dtype=torch.float64)
    scores[:6] = scores[0]  # ties
    scores[torch.rand(24, generator=generator) < 0.2] = NAN
    groups = torch.randint(0, 6, (24,), generator=generator)
    order = torch.randperm(24, generator=generator)
    whole = group_advantages(scores, groups, None, kind)
    assert torch.equal(group_advantages(scores[order], groups[order], None, kind), whole[order])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-100, 100), min_size=2, max_size=8))
def test_rloo_subtracts_the_mean_of_the_others(scores):
    advantages = group_advantages(torch.tensor(scores, dtype=torch.float64), torch.zeros(len(scores)), None, "rloo")
    for i, score in enumerate(scores):
        others = scores[:i] + scores[i + 1 :]
        assert advantages[i].item() == pytest.approx(score - sum(others) / len(others), abs=1e-9)


def test_opo_weighs_its_baseline_by_length():
    # Group 0: lengths 1 and 3, scores 4 and 0: baseline 4 / 4 = 1. The failed row and the one alone give 0.
    scores, groups = torch.tensor([4.0, 0.0, NAN, 9.0]), torch.tensor([0, 0, 0, 1])
    close(opo(scores, groups, torch.tensor([1, 3, 50, 2]), None), [3, -1, 0, 0])


def test_remax_subtracts_the_greedy_score_and_needs_both():
    close(remax(torch.tensor([1.0, NAN, 2.0]), torch.tensor([0.25, 1.0, NAN])), [0.75, 0.0, 0.0])


# --- whitened over the batch ---


def test_reward_to_go_sums_what_follows_and_skips_holes():
    mask = torch.tensor([[1, 0, 1, 1]], dtype=torch.bool)
    close(reward_to_go(torch.tensor([[1.0, NAN, 2.0, 4.0]]), mask, 0.5), [[3, 0, 4, 4]])


def test_reinforce_pp_whitens_reward_to_go_over_the_batch():
    # Rewards to go 3, 3 and 1: mean 7/3, variance 4/3.
    rewards, mask = torch.tensor([[0.0, 3.0], [1.0, NAN]]), torch.tensor([[True, True], [True, False]])
    std = math.sqrt(4 / 3)
    close(reinforce_pp(rewards, mask), [[2 / 3 / std, 2 / 3 / std], [-4 / 3 / std, 0]])


def test_reinforce_pp_baseline_subtracts_the_group_mean_then_whitens_tokens():
    # Group means 2 and 5: centred -1, 1, 0 on 2, 1, 1 tokens: mean -1/4, squares 3 - 1/4, variance 2.75 / 3.
    mask = torch.tensor([[1, 1], [1, 0], [1, 0], [1, 1]], dtype=torch.bool)
    scores, groups = torch.tensor([1.0, 3.0, 5.0, NAN]), torch.tensor([0, 0, 1, 0])
    std = math.sqrt(2.75 / 3)
    expected = [[-0.75 / std, -0.75 / std], [1.25 / std, 0], [0.25 / std, 0], [0, 0]]
    close(reinforce_pp_baseline(scores, groups, mask), expected)


def test_a_rows_advantage_is_spread_over_its_tokens_only():
    mask = torch.tensor([[1, 0, 1], [0, 0, 0]], dtype=torch.bool)
    close(spread_over_tokens(torch.tensor([2.0, NAN]), mask), [[2, 0, 2], [0, 0, 0]])
