"""Preference losses: every formula by hand, finite at log-ratios of ±2000, micro-batches that add up."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learners.methods.preference_losses import LOSSES, Pairs, kto_baseline, kto_loss, preference_loss, reward_model_loss
from learners.methods.presets import PREFERENCE_NAMES, PreferenceSettings


def sg(x):
    return 1 / (1 + math.exp(-x))


def ls(x):
    return math.log(sg(x))


def column(*values):
    return torch.tensor(values, dtype=torch.float64)


def pair(lp_c, lp_r, ref_c=0.0, ref_r=0.0, n_c=1, n_r=1):
    return Pairs(column(lp_c), column(lp_r), column(n_c), column(n_r), column(ref_c), column(ref_r))


def random_pairs(seed, count=6):
    g = torch.Generator().manual_seed(seed)
    lp = -20 * torch.rand(4, count, generator=g, dtype=torch.float64) - 1
    tokens = torch.randint(1, 9, (2, count), generator=g)
    return Pairs(lp[0], lp[1], tokens[0], tokens[1], lp[2], lp[3])


def rows(p, index):
    fields = (p.chosen_P, p.rejected_P, p.chosen_tokens_P, p.rejected_tokens_P, p.ref_chosen_P, p.ref_rejected_P)
    return Pairs(*(f[index] for f in fields), valid_P=None if p.valid_P is None else p.valid_P[index])


# u = -4 - -10 = 6 on 3 tokens, v = -8 - -4 = -4 on 2 tokens, beta 0.5: beta u = 3, beta v = -2, x = 5.
HAND = pair(-4.0, -8.0, -10.0, -4.0, 3, 2)
P_C, P_R = math.exp(-4 / 3), math.exp(-4.0)
ODDS = math.log(P_C / (1 - P_C)) - math.log(P_R / (1 - P_R))
EXPECTED = {
    "sigmoid": -ls(5),
    "robust": -ls(5),
    "hinge": 0.0,
    "ipo": (6 / 3 + 4 / 2 - 1) ** 2,
    "exo_pair": sg(5) * (ls(5) - math.log(0.999)) + sg(-5) * (ls(-5) - math.log(0.001)),
    "nca_pair": -ls(3) - 0.5 * ls(-3) - 0.5 * ls(2),
    "sppo_hard": (6 - 1) ** 2 + (-4 + 1) ** 2,
    "apo_zero": 1 - sg(3) + sg(-2),
    "apo_down": sg(3) + 1 - sg(5),
    "discopop": -(1 - sg(100)) * ls(5) + sg(100) * math.exp(-5),
    "kto": 0.5 * (1 - sg(0.5 * (6 - 2)) + 1 - sg(0.5 * (2 + 4))),  # z = 2
    "orpo": 4 / 3 - 0.5 * math.log(1 / (1 + math.exp(-ODDS))),
    "simpo": -ls(0.5 * (-4 / 3 + 4) - 0.5),
    "cpo": -ls(0.5 * (-4 + 8)) + 4 / 3,
}


def test_every_loss_is_registered_under_its_published_name():
    assert set(LOSSES) == set(PREFERENCE_NAMES) == set(EXPECTED)


@pytest.mark.parametrize("name", PREFERENCE_NAMES)
def test_each_loss_gives_the_number_worked_out_by_hand(name):
    loss, metrics = preference_loss(HAND, PreferenceSettings(loss=name, beta=0.5), baseline=2.0)
    assert loss.item() == pytest.approx(EXPECTED[name], abs=1e-9)
    assert metrics["loss"].item() == loss.item()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sigmoid", -0.9 * ls(5) - 0.1 * ls(-5)),
        ("robust", (-0.9 * ls(5) + 0.1 * ls(-5)) / 0.8),
        ("exo_pair", sg(5) * (ls(5) - math.log(0.9)) + sg(-5) * (ls(-5) - math.log(0.1))),
    ],
)
def test_label_smoothing_enters_as_published(name, expected):
    loss, _ = preference_loss(HAND, PreferenceSettings(loss=name, beta=0.5, label_smoothing=0.1))
    assert loss.item() == pytest.approx(expected, abs=1e-9)


def test_hinge_is_linear_inside_the_margin():
    loss, _ = preference_loss(pair(-1.0, -2.0), PreferenceSettings(loss="hinge", beta=0.25))
    assert loss.item() == pytest.approx(0.75)


def test_discopop_blends_half_and_half_at_zero():
    loss, _ = preference_loss(pair(-1.0, -1.0), PreferenceSettings(loss="discopop"))
    assert loss.item() == pytest.approx((math.log(2) + 1) / 2)


@pytest.mark.parametrize(("name", "e"), [("sigmoid", 0.0), ("sigmoid", 0.2), ("robust", 0.2)])
def test_chosen_equal_to_rejected_gives_log_two_and_no_gradient(name, e):
    lp = column(-5.0).requires_grad_()
    same = Pairs(lp, lp, column(4), column(4), column(-7.0), column(-7.0))
    loss, metrics = preference_loss(same, PreferenceSettings(loss=name, label_smoothing=e))
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2))
    assert lp.grad.item() == 0.0
    assert metrics["preference/accuracy"].item() == 0.0


def test_metrics_are_rewards_accuracy_and_margin_over_pairs():
    two = Pairs(column(-4, -3), column(-8, -1), column(3, 1), column(2, 1), column(-10, -3), column(-4, -3))
    _, metrics = preference_loss(two, PreferenceSettings(beta=0.5))
    got = {name: metrics[name].item() for name in metrics if name != "loss"}
    expected = {"rewards/chosen": 1.5, "rewards/rejected": -0.5, "preference/margin": 2.0, "preference/accuracy": 0.5}
    assert got == pytest.approx(expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("signs", [(1, 1), (1, -1), (-1, 1), (-1, -1)])
@pytest.mark.parametrize("beta", [0.1, 2.5])
@pytest.mark.parametrize("name", PREFERENCE_NAMES)
def test_log_ratios_of_two_thousand_give_finite_losses_and_gradients(name, beta, signs, dtype):
    chosen, rejected = (torch.tensor([2000.0 * s], dtype=dtype, requires_grad=True) for s in signs)
    one, none = torch.ones(1, dtype=dtype), torch.zeros(1, dtype=dtype)
    config = PreferenceSettings(loss=name, beta=beta, label_smoothing=0.1)
    loss, metrics = preference_loss(Pairs(chosen, rejected, one, one, none, none), config, baseline=0.0)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(chosen.grad).all() and torch.isfinite(rejected.grad).all()
    assert all(torch.isfinite(value) for value in metrics.values())


@pytest.mark.parametrize("name", PREFERENCE_NAMES)
def test_gradients_match_finite_differences(name):
    p = random_pairs(5)
    config = PreferenceSettings(loss=name, label_smoothing=0.1)

    def loss(chosen, rejected):
        moved = Pairs(chosen, rejected, p.chosen_tokens_P, p.rejected_tokens_P, p.ref_chosen_P, p.ref_rejected_P)
        return preference_loss(moved, config, baseline=0.5)[0]

    assert torch.autograd.gradcheck(loss, (p.chosen_P.requires_grad_(), p.rejected_P.requires_grad_()))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(PREFERENCE_NAMES), st.integers(1, 6))
def test_micro_batches_in_any_order_give_the_unsplit_loss_gradient_and_metrics(seed, name, parts):
    p, config = random_pairs(seed), PreferenceSettings(loss=name)
    p.chosen_P.requires_grad_()
    loss, metrics = preference_loss(p, config, baseline=0.5)
    (whole,) = torch.autograd.grad(loss, p.chosen_P)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    whole_of = {"total_pairs": 6, "total_chosen_tokens": float(p.chosen_tokens_P.sum()), "baseline": 0.5}
    pieces = [preference_loss(rows(p, r), config, **whole_of) for r in order.chunk(parts)]
    (cut,) = torch.autograd.grad(sum(piece[0] for piece in pieces), p.chosen_P)
    torch.testing.assert_close(cut, whole)
    for key, value in metrics.items():
        assert sum(piece[1][key].item() for piece in pieces) == pytest.approx(value.item(), abs=1e-9), key


# Chosen responses of -6 over 3 tokens and -9 over 1; the rejected ones are as likely.
UNEVEN = Pairs(column(-6.0, -9.0), column(-6.0, -9.0), column(3, 1), column(3, 1))


def test_cpo_s_nll_is_a_mean_over_all_chosen_tokens_and_orpo_s_over_each_response_first():
    cpo, _ = preference_loss(UNEVEN, PreferenceSettings(loss="cpo", nll_coef=2.0))
    # chosen equal to rejected: log 2; 15 nats on 4 tokens
    assert cpo.item() == pytest.approx(math.log(2) + 2.0 * 15 / 4)
    orpo, _ = preference_loss(UNEVEN, PreferenceSettings(loss="orpo", beta=0.5))
    # 2 and 9 nats a token: 5.5 on average; equal odds
    assert orpo.item() == pytest.approx((2.0 + 9.0) / 2 + 0.5 * math.log(2))


def test_a_filler_row_has_no_tokens_in_cpo_s_mean():
    fields = (UNEVEN.chosen_P, UNEVEN.rejected_P, UNEVEN.chosen_tokens_P, UNEVEN.rejected_tokens_P)
    filled = Pairs(*(torch.cat([f, column(99.0)]) for f in fields), valid_P=torch.tensor([True, True, False]))
    settings = PreferenceSettings(loss="cpo")
    assert preference_loss(filled, settings)[0].item() == preference_loss(UNEVEN, settings)[0].item()


def test_a_part_of_a_mini_batch_under_cpo_must_know_the_tokens_of_the_whole():
    part = rows(Pairs(*[UNEVEN.chosen_P] * 2, *[UNEVEN.chosen_tokens_P] * 2, *[UNEVEN.chosen_P] * 2), slice(0, 1))
    with pytest.raises(ValueError, match="pass total_chosen_tokens"):
        preference_loss(part, PreferenceSettings(loss="cpo"), total_pairs=2)
    preference_loss(part, PreferenceSettings(loss="orpo"), total_pairs=2)


@pytest.mark.parametrize("poison", [math.nan, math.inf, 1e4])
@pytest.mark.parametrize("name", PREFERENCE_NAMES)
def test_a_filler_row_changes_no_bit(name, poison):
    def outcome(filler):
        p, valid = random_pairs(2), torch.tensor([True, True, False, True, True, False])
        fill = column(filler)
        fields = [torch.where(valid, f, fill) for f in (p.chosen_P, p.rejected_P, p.ref_chosen_P, p.ref_rejected_P)]
        fields[0].requires_grad_()
        filled = Pairs(fields[0], fields[1], p.chosen_tokens_P, p.rejected_tokens_P, fields[2], fields[3], valid)
        loss, metrics = preference_loss(filled, PreferenceSettings(loss=name), baseline=0.5)
        loss.backward()
        return [loss.detach(), fields[0].grad, *metrics.values()]

    for clean, poisoned in zip(outcome(0.0), outcome(poison), strict=True):
        assert torch.equal(clean, poisoned)


def test_only_filler_gives_zero_with_a_gradient_of_zero():
    chosen = torch.full((2,), math.nan, requires_grad=True)
    nan = chosen.detach()
    empty = Pairs(chosen, nan, nan, nan, nan, nan, valid_P=torch.zeros(2, dtype=torch.bool))
    loss, _ = preference_loss(empty, PreferenceSettings())
    loss.backward()
    assert loss.item() == 0.0 and torch.equal(chosen.grad, torch.zeros(2))


@pytest.mark.parametrize("name", ["simpo", "cpo", "orpo"])
def test_losses_without_a_reference_never_look_at_one(name):
    bare = Pairs(HAND.chosen_P, HAND.rejected_P, HAND.chosen_tokens_P, HAND.rejected_tokens_P)
    loss, _ = preference_loss(bare, PreferenceSettings(loss=name, beta=0.5))
    assert loss.item() == pytest.approx(EXPECTED[name], abs=1e-9)


def test_missing_inputs_and_bad_settings_say_the_fix():
    bare = Pairs(HAND.chosen_P, HAND.rejected_P, HAND.chosen_tokens_P, HAND.rejected_tokens_P)
    with pytest.raises(ValueError, match="pass ref_chosen_P and ref_rejected_P"):
        preference_loss(bare, PreferenceSettings())
    with pytest.raises(ValueError, match="pass baseline=kto_baseline"):
        preference_loss(HAND, PreferenceSettings(loss="kto"))
    with pytest.raises(ValueError, match="set it to one of sigmoid"):
        PreferenceSettings(loss="dpo")
    with pytest.raises(ValueError, match=r"below 0\.5"):
        PreferenceSettings(label_smoothing=0.5)
    with pytest.raises(ValueError, match="set it above 0"):
        PreferenceSettings(beta=0.0)


# --- KTO ---


def test_kto_baseline_is_the_mean_gap_clamped_at_zero_and_detached():
    lp = column(-1.0, -2.0).requires_grad_()
    assert kto_baseline(lp, column(-4.0, -3.0)).item() == 2.0
    assert kto_baseline(lp, column(0.0, 0.0)).item() == 0.0
    assert not kto_baseline(lp, column(-4.0, -3.0)).requires_grad


def test_kto_baseline_of_the_whole_is_not_that_of_its_parts():
    lp, ref = column(4.0, -2.0), column(0.0, 0.0)
    parts = (kto_baseline(lp[:1], ref[:1]) + kto_baseline(lp[1:], ref[1:])) / 2
    assert (kto_baseline(lp, ref).item(), parts.item()) == (1.0, 2.0)


def test_kto_on_single_responses_weighs_good_and_bad_and_adds_up():
    lp, ref, good = column(1.0, -1.0, 3.0), column(0.0, 0.0, 0.0), torch.tensor([True, False, True])
    config = PreferenceSettings(loss="kto", beta=0.5, desirable_weight=1.0, undesirable_weight=2.0)
    loss, metrics = kto_loss(lp, ref, good, 1.0, config)
    expected = (1 - sg(0)) + 2 * (1 - sg(0.5 * (1 + 1))) + (1 - sg(0.5 * (3 - 1)))
    assert loss.item() == pytest.approx(expected / 3)
    assert metrics["rewards/chosen"].item() == pytest.approx(1.0)  # 0.5 * (1 + 3) / 2
    assert metrics["rewards/rejected"].item() == pytest.approx(-0.5)
    pieces = [kto_loss(lp[i : i + 1], ref[i : i + 1], good[i : i + 1], 1.0, config, totals=(2, 1)) for i in range(3)]
    for key, value in metrics.items():
        assert sum(piece[1][key].item() for piece in pieces) == pytest.approx(value.item())


def test_kto_filler_rows_count_nowhere():
    lp, good = column(1.0, math.nan), torch.tensor([True, True])
    loss, metrics = kto_loss(
        lp, column(0.0, math.inf), good, 1.0, PreferenceSettings(loss="kto"), valid_R=torch.tensor([True, False])
    )
    assert loss.item() == 0.5
    assert metrics["rewards/chosen"].item() == pytest.approx(0.1)


# --- reward model ---


def test_reward_model_loss_is_bradley_terry_with_margin_and_centring():
    chosen, rejected = column(2.0, 0.0), column(1.0, 1.0)
    loss, metrics = reward_model_loss(chosen, rejected, margin_P=column(0.5, 0.0), centre_coef=0.1)
    assert loss.item() == pytest.approx((-ls(0.5) - ls(-1) + 0.1 * (9 + 1)) / 2)
    assert metrics["preference/accuracy"].item() == 0.5
    assert metrics["preference/margin"].item() == pytest.approx(0.0)


def test_reward_model_loss_adds_up_and_ignores_filler():
    chosen, rejected = column(2.0, 0.0, math.nan), column(1.0, 1.0, math.nan)
    valid = torch.tensor([True, True, False])
    whole, _ = reward_model_loss(chosen, rejected, valid_P=valid)
    parts = [reward_model_loss(chosen[i : i + 1], rejected[i : i + 1], total_pairs=2)[0] for i in range(2)]
    assert whole.item() == pytest.approx(sum(p.item() for p in parts))


@pytest.mark.parametrize("gap", [2000.0, -2000.0])
def test_reward_model_loss_is_finite_for_scores_far_apart(gap):
    chosen = torch.tensor([gap], requires_grad=True)
    loss, _ = reward_model_loss(chosen, torch.zeros(1))
    loss.backward()
    assert loss.item() == pytest.approx(max(-gap, 0.0)) and torch.isfinite(chosen.grad).all()
