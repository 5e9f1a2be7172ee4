"""Policy losses: values and gradients by hand, every cut of the batch equal, nothing outside the mask seen."""

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learners.methods.aggregation import batch_totals
from learners.methods.policy_losses import CORRECTIONS, CURVES, RATIOS, SURROGATES, policy_loss
from learners.methods.presets import CORRECTION_NAMES, KIND_NAMES, PRESETS, RATIO_NAMES, PolicyLossSettings, preset

ONE = torch.ones(1, 1, dtype=torch.bool)
ROW = torch.ones(1, 2, dtype=torch.bool)

VARIANTS = {
    **{name: p.loss for name, p in PRESETS.items() if name != "dr_grpo"},
    "dr_grpo": PolicyLossSettings(aggregation="seq-mean-token-sum-norm", horizon=8),
    "all_terms": PolicyLossSettings(
        dual_clip=3.0, kl_kind="k3", kl_coef=0.1, entropy_coef=0.05, correction="token_tis", correction_cap=1.1
    ),
    "sequence_tis": PolicyLossSettings(ratio="sequence_mean", correction="sequence_tis", kl_kind="k1", kl_coef=0.1),
    "icepop": PolicyLossSettings(correction="icepop", correction_floor=0.9, correction_cap=1.1),
}


def one_token(ratio, advantage, **fields):
    """Loss, d loss / d lp and metrics of a single token whose ratio is given."""
    lp = torch.tensor([[math.log(ratio)]], dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([[advantage]], dtype=torch.float64)
    loss, metrics = policy_loss(lp, torch.zeros_like(lp), advantages, ONE, PolicyLossSettings(**fields))
    loss.backward()
    return loss.item(), lp.grad.item(), metrics


def batch(seed, rows=5, width=4):
    g = torch.Generator().manual_seed(seed)
    lp = -3 * torch.rand(rows, width, generator=g, dtype=torch.float64)
    noise = 0.3 * torch.randn(3, rows, width, generator=g, dtype=torch.float64)
    advantages = torch.randn(rows, width, generator=g, dtype=torch.float64)
    mask = torch.rand(rows, width, generator=g) < 0.7
    others = {"roll": lp + noise[0] + noise[1], "ref": lp + noise[2], "entropy": -lp}
    return lp, lp + noise[0], advantages, mask, others


def run(tensors, rows, config, totals=None):
    lp, old, advantages, mask, others = tensors
    others = {name: x[rows] for name, x in others.items()}
    return policy_loss(lp[rows], old[rows], advantages[rows], mask[rows], config, totals=totals, **others)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "clipped"),
    [
        (1.1, 2.0, -2.2, -2.2, 0.0),  # inside: -r A, gradient -r A
        (1.5, 2.0, -2.4, 0.0, 1.0),  # above with A > 0: held at 1.2
        (0.5, 2.0, -1.0, -1.0, 0.0),  # below with A > 0: free to come back
        (0.5, -2.0, 1.6, 0.0, 1.0),  # below with A < 0: held at 0.8
        (1.5, -2.0, 3.0, 3.0, 0.0),  # above with A < 0: free to come back
    ],
)
def test_clip_holds_the_ratio_only_where_it_has_gone_far_enough(ratio, advantage, loss, gradient, clipped):
    actual, grad, metrics = one_token(ratio, advantage)
    assert (actual, grad) == (pytest.approx(loss), pytest.approx(gradient))
    assert metrics["policy/clip_fraction"].item() == clipped


def test_clip_higher_leaves_more_room_upwards_than_downwards():
    assert one_token(1.25, 1.0, clip_high=0.28)[0] == pytest.approx(-1.25)
    assert one_token(1.5, 1.0, clip_high=0.28)[0] == pytest.approx(-1.28)
    assert one_token(0.5, -1.0, clip_high=0.28)[0] == pytest.approx(0.8)


def test_dual_clip_bounds_loss_when_advantage_is_negative():
    loss, gradient, metrics = one_token(10.0, -2.0, dual_clip=3.0)
    assert (loss, gradient, metrics["policy/clip_fraction"].item()) == (6.0, 0.0, 1.0)
    assert one_token(10.0, -2.0)[0] == pytest.approx(20.0)
    assert one_token(0.1, 2.0, dual_clip=3.0)[0] == pytest.approx(-0.2)


@pytest.mark.parametrize(("ratio", "weight"), [(0.01, 0.01), (1.1, 1.1), (9.0, 1.28)])
def test_cispo_caps_the_weight_but_never_drops_a_gradient(ratio, weight):
    loss, gradient, metrics = one_token(ratio, 2.0, kind="cispo", clip_low=1.0, clip_high=0.28)
    assert loss == pytest.approx(-weight * 2.0 * math.log(ratio))
    assert gradient == pytest.approx(-weight * 2.0)
    assert metrics["policy/clip_fraction"].item() == float(ratio > 1.28)


def test_gspo_ratio_is_the_exponential_of_the_rows_mean():
    # d = 0.1, 0.3: ratio exp(0.2) on both tokens; a second row of one token d = 0. Mean of rows, A = 1.
    lp = torch.tensor([[0.1, 0.3], [0.0, 9.0]], dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, True], [True, False]])
    config = PolicyLossSettings(ratio="sequence_mean", clip_high=1.0, aggregation="seq-mean-token-mean")
    loss, _ = policy_loss(lp, torch.zeros_like(lp), torch.ones_like(lp), mask, config)
    loss.backward()
    assert loss.item() == pytest.approx(-(math.exp(0.2) + 1.0) / 2)
    expected = torch.tensor([[-math.exp(0.2) / 4] * 2, [-0.5, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(lp.grad, expected)


def test_gspo_clamps_the_mean_and_not_its_tokens():
    lp = torch.tensor([[100.0, -99.0]], dtype=torch.float64)
    config = PolicyLossSettings(ratio="sequence_mean", clip_high=9.0)
    loss, _ = policy_loss(lp, torch.zeros_like(lp), torch.ones_like(lp), ROW, config)
    assert loss.item() == pytest.approx(-math.exp(0.5))


def test_rloo_gradient_at_ratio_one_is_reinforce_whatever_the_length():
    lp = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]], dtype=torch.bool)
    advantages = torch.tensor([[2.0] * 3, [-4.0] * 3], dtype=torch.float64)
    loss, _ = policy_loss(lp, lp.detach(), advantages, mask, PRESETS["rloo"].loss)
    loss.backward()
    torch.testing.assert_close(lp.grad, torch.tensor([[-1.0] * 3, [2.0, 0, 0]], dtype=torch.float64))


def test_rloo_ratio_is_of_the_whole_response_and_its_loss_counts_once():
    lp = torch.full((1, 2), 0.05, dtype=torch.float64)
    loss, metrics = policy_loss(lp, torch.zeros_like(lp), torch.ones_like(lp), ROW, PRESETS["rloo"].loss)
    assert loss.item() == pytest.approx(-math.exp(0.1))
    assert metrics["policy/ratio"].item() == pytest.approx(math.exp(0.1))


@pytest.mark.parametrize(
    ("fields", "weights"),
    [
        ({"correction": "token_tis", "correction_cap": 1.5}, (0.5, 1.5)),
        ({"correction": "sequence_tis", "correction_cap": 2.0}, (1.5, 1.5)),
        ({"correction": "icepop", "correction_floor": 0.4, "correction_cap": 2.0}, (0.5, 0.0)),
    ],
)
def test_correction_weighs_each_token_by_the_engines_mismatch(fields, weights):
    # old / roll = 0.5 and 3; the product is 1.5.
    lp = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    roll = -torch.tensor([[0.5, 3.0]], dtype=torch.float64).log()
    loss, metrics = policy_loss(lp, lp.detach(), torch.ones_like(lp), ROW, PolicyLossSettings(**fields), roll=roll)
    loss.backward()
    torch.testing.assert_close(lp.grad, torch.tensor([weights], dtype=torch.float64) / -2)
    assert metrics["policy/correction_weight"].item() == pytest.approx(sum(weights) / 2)
    assert metrics["policy/mismatch"].item() == pytest.approx((math.log(2) + math.log(3)) / 2)


def test_kl_and_entropy_are_added_after_the_correction_weight():
    lp = torch.full((1, 1), -1.0, dtype=torch.float64)
    config = PolicyLossSettings(
        kl_kind="k2", kl_coef=0.5, entropy_coef=0.1, correction="token_tis", correction_cap=0.25
    )
    loss, _ = policy_loss(lp, lp, torch.ones_like(lp), ONE, config, roll=lp, ref=lp - 2.0, entropy=lp + 4.0)
    assert loss.item() == pytest.approx(-0.25 + 0.5 * 2.0 - 0.1 * 3.0)


def test_metrics_are_the_token_means_worked_out_by_hand():
    lp = torch.tensor([[math.log(0.5), math.log(0.25)]], dtype=torch.float64)
    old = torch.tensor([[math.log(0.25), math.log(0.25)]], dtype=torch.float64)
    _, metrics = policy_loss(
        lp, old, torch.ones_like(lp), ROW, PolicyLossSettings(), ref=old, entropy=torch.tensor([[1.0, 2.0]])
    )
    got = {name: value.item() for name, value in metrics.items()}
    assert got == pytest.approx(
        {
            "policy/loss": -(1.2 + 1.0) / 2,
            "policy/clip_fraction": 0.5,
            "policy/ratio": 1.5,
            "policy/approx_kl": (2 - 1 - math.log(2)) / 2,
            "kl/ref": (0.5 - 1 + math.log(2)) / 2,
            "kl/ref_k1": math.log(2) / 2,
            "policy/entropy": 1.5,
        }
    )
    assert not any(value.requires_grad for value in metrics.values())


@pytest.mark.parametrize("which", ["lp", "old", "roll", "ref"])
@pytest.mark.parametrize("nats", [15.0, -15.0, 1e4, -1e4])
def test_one_token_moves_what_may_decide_by_its_nats_and_only_curves_by_their_exponential(which, nats):
    lp, old, advantages, mask, others = batch(3, rows=10, width=10)
    config = PolicyLossSettings(correction="token_tis", correction_cap=1e9)

    def metrics(**moved):
        columns = {"lp": lp, "old": old, **others, **moved}
        found = policy_loss(columns.pop("lp"), columns.pop("old"), advantages, mask, config, **columns)[1]
        return {name: value.item() for name, value in found.items() if name != "policy/loss"}

    row, token = mask.nonzero()[0].tolist()
    moved = {"lp": lp, "old": old, **others}[which].clone()
    moved[row, token] += nats
    before, after = metrics(), metrics(**{which: moved})
    change = {name: abs(after[name] - before[name]) * float(mask.sum()) for name in before}
    assert set(CURVES) < set(before)
    for name in before.keys() - set(CURVES) - {"policy/mismatch"}:
        assert change[name] <= 40.0, name  # from 20 nats below to 20 above at most
    assert change["policy/mismatch"] <= abs(nats) + 1e-9
    if (which, nats) == ("ref", 15.0):
        assert change["kl/ref"] > 1e6 and 14.0 < change["kl/ref_k1"] <= 15.0 + 1e-9


@pytest.mark.parametrize("name", [n for n, s in VARIANTS.items() if s.kind != "cispo"])
def test_gradients_match_finite_differences(name):
    lp, old, advantages, mask, others = batch(3)
    lp.requires_grad_()
    entropy = others.pop("entropy").clone().requires_grad_()

    def loss(x, h):
        return policy_loss(x, old, advantages, mask, VARIANTS[name], entropy=h, **others)[0]

    assert torch.autograd.gradcheck(loss, (lp, entropy))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(sorted(VARIANTS)), st.integers(1, 5))
def test_micro_batches_in_any_order_give_the_unsplit_loss_gradient_and_metrics(seed, name, parts):
    tensors = batch(seed)
    lp = tensors[0].requires_grad_()
    loss, metrics = run(tensors, slice(None), VARIANTS[name])
    (whole,) = torch.autograd.grad(loss, lp)
    totals = batch_totals(tensors[3])
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    pieces = [run(tensors, rows, VARIANTS[name], totals) for rows in order.chunk(parts)]
    (cut,) = torch.autograd.grad(sum(p[0] for p in pieces), lp)
    torch.testing.assert_close(cut, whole)
    for key, value in metrics.items():
        assert sum(p[1][key].item() for p in pieces) == pytest.approx(value.item(), abs=1e-9), key


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf, 1e4])
@pytest.mark.parametrize("name", VARIANTS)
def test_values_outside_the_mask_change_no_bit(name, poison):
    def outcome(filler):
        lp, old, advantages, mask, others = batch(1)
        fill = torch.tensor(filler, dtype=torch.float64)
        lp, old, advantages = (torch.where(mask, x, fill) for x in (lp, old, advantages))
        others = {key: torch.where(mask, x, fill) for key, x in others.items()}
        lp.requires_grad_()
        loss, metrics = policy_loss(lp, old, advantages, mask, VARIANTS[name], **others)
        loss.backward()
        return [loss.detach(), lp.grad, *metrics.values()]

    for clean, poisoned in zip(outcome(0.0), outcome(poison), strict=True):
        assert torch.equal(clean, poisoned)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("gap", [2000.0, -2000.0])
def test_huge_log_ratios_stay_finite_in_loss_and_gradient(name, gap):
    lp = torch.full((1, 2), -3.0, requires_grad=True)
    far = lp.detach() + gap
    loss, metrics = policy_loss(
        lp, far, torch.tensor([[1.0, -1.0]]), ROW, VARIANTS[name], roll=far - gap, ref=far, entropy=lp
    )
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(lp.grad).all()
    assert all(torch.isfinite(value) for value in metrics.values())


@pytest.mark.parametrize("name", VARIANTS)
def test_batch_without_tokens_gives_zero_and_zero_gradient(name):
    lp = torch.full((2, 2), math.nan, requires_grad=True)
    nan, mask = lp.detach(), torch.zeros(2, 2, dtype=torch.bool)
    loss, _ = policy_loss(lp, nan, nan, mask, VARIANTS[name], roll=nan, ref=nan, entropy=nan)
    loss.backward()
    assert loss.item() == 0.0 and torch.equal(lp.grad, torch.zeros(2, 2))


@pytest.mark.parametrize("name", VARIANTS)
def test_before_the_first_update_no_token_is_clipped_and_the_ratio_is_one(name):
    lp, _, advantages, mask, others = batch(2)
    _, metrics = policy_loss(lp, lp, advantages, mask, VARIANTS[name], **others)
    assert metrics["policy/clip_fraction"].item() == 0.0
    assert metrics["policy/ratio"].item() == pytest.approx(1.0)
    assert metrics["policy/approx_kl"].item() == 0.0


def test_bfloat16_log_probs_are_computed_in_float32():
    lp = torch.tensor([[-1.0]], dtype=torch.bfloat16, requires_grad=True)
    loss, _ = policy_loss(lp, torch.tensor([[-1.001]]), torch.ones(1, 1), ONE, PolicyLossSettings())
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(-math.exp(0.001), abs=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"correction": "icepop"}, "pass roll"),
        ({"kl_kind": "k3", "kl_coef": 0.1}, "pass ref"),
        ({"entropy_coef": 0.1}, "pass entropy"),
    ],
)
def test_a_missing_input_is_named_with_the_fix(fields, message):
    with pytest.raises(ValueError, match=message):
        policy_loss(torch.zeros(1, 1), torch.zeros(1, 1), torch.ones(1, 1), ONE, PolicyLossSettings(**fields))


def test_settings_refuse_unknown_names_and_a_dual_clip_of_one():
    with pytest.raises(ValueError, match="ratio is 'row'; set it to one of token"):
        PolicyLossSettings(ratio="row")
    with pytest.raises(ValueError, match="set it above 1"):
        PolicyLossSettings(dual_clip=1.0)
    with pytest.raises(ValueError, match=r"algorithm.name is 'pppo'; set it to one of ppo, grpo"):
        preset("pppo")


def test_every_name_has_its_function_and_the_other_way_round():
    assert set(RATIOS) == set(RATIO_NAMES)
    assert set(SURROGATES) == set(KIND_NAMES)
    assert {"none", *CORRECTIONS} == set(CORRECTION_NAMES)


def test_presets_agree_with_themselves_on_where_the_kl_sits():
    for p in PRESETS.values():
        in_loss = (p.loss.kl_kind, p.loss.kl_coef) if p.loss.kl_kind else None
        assert in_loss == ((p.kl_kind, p.kl_coef) if p.kl_place == "loss" else None)


def test_presets_import_without_torch():
    code = "import sys, learners.methods.presets; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
