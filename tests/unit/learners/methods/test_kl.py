"""KL estimators by hand, their unbiasedness on an exact distribution, and the controllers."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learners.methods.kl import AdaptiveKL, FixedKL, kl_controller, kl_tokens


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("k1", math.log(2)),  # log(0.5 / 0.25)
        ("k2", math.log(2) ** 2 / 2),
        ("k3", 0.5 + math.log(2) - 1),  # exp(ref - lp) = 1/2
    ],
)
def test_estimators_give_the_numbers_worked_out_by_hand(kind, expected):
    value = kl_tokens(torch.tensor(0.5).log(), torch.tensor(0.25).log(), kind)
    assert value.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_k1_and_k3_are_unbiased_under_the_policy(kind):
    lp, ref = torch.randn(2, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64).log_softmax(-1)
    exact = (lp.exp() * (lp - ref)).sum()
    assert (lp.exp() * kl_tokens(lp, ref, kind)).sum().item() == pytest.approx(exact.item(), abs=1e-12)


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_gradients_match_finite_differences(kind):
    lp = torch.tensor([-0.3, -2.0, -5.0], dtype=torch.float64, requires_grad=True)
    ref = torch.tensor([-0.5, -1.0, -9.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: kl_tokens(x, ref, kind), (lp,))


@given(st.floats(-2000, 2000))
def test_k3_is_never_negative_and_its_gradient_never_points_away_from_the_reference(d):
    lp = torch.tensor(d, dtype=torch.float64, requires_grad=True)
    value = kl_tokens(lp, torch.zeros((), dtype=torch.float64), "k3")
    value.backward()
    assert value.item() >= -1e-30, "x^2 / 2 but for the last bit of x"
    assert math.isfinite(lp.grad.item())
    assert lp.grad.item() * d >= 0.0


@pytest.mark.parametrize("d", [1e-2, 1e-3, -1e-4, 1e-6])
def test_small_k3_keeps_its_digits_in_float32(d):
    value = kl_tokens(torch.tensor(d), torch.tensor(0.0), "k3")
    exact = math.expm1(-float(torch.tensor(d))) + float(torch.tensor(d))
    assert value.item() == pytest.approx(exact, rel=5e-3 if abs(d) > 1e-5 else 0.2)


def test_k3_clamps_only_the_exponent():
    value = kl_tokens(torch.tensor(30.0, dtype=torch.float64), torch.tensor(0.0), "k3")
    assert value.item() == pytest.approx(math.exp(-20) + 30 - 1)
    value = kl_tokens(torch.tensor(-30.0, dtype=torch.float64), torch.tensor(0.0), "k3")
    assert value.item() == pytest.approx(math.exp(20) - 30 - 1)


def test_half_precision_log_probs_are_compared_in_float32():
    value = kl_tokens(torch.tensor(-1.0, dtype=torch.bfloat16), torch.tensor(-1.001), "k1")
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(0.001, rel=1e-3)


def test_unknown_kind_names_the_known_ones():
    with pytest.raises(ValueError, match="'k4'; set it to one of k1, k2, k3"):
        kl_tokens(torch.zeros(1), torch.zeros(1), "k4")


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        (6.0, 0.1),  # on target
        (6.6, 0.1 * (1 + 0.1 * 64 / 640)),  # 10 % above
        (60.0, 0.1 * (1 + 0.2 * 64 / 640)),  # clipped at +0.2
        (0.0, 0.1 * (1 - 0.2 * 64 / 640)),  # clipped at -0.2
    ],
)
def test_adaptive_controller_moves_by_the_clipped_error(kl, expected):
    assert AdaptiveKL(coef=0.1, target=6.0, horizon=640).update(kl, 64).coef == pytest.approx(expected)


def test_update_leaves_the_old_state_alone():
    before = AdaptiveKL(coef=0.1, target=6.0, horizon=100)
    before.update(60.0, 10)
    assert before.coef == 0.1


def test_fixed_controller_stays():
    assert FixedKL(0.05).update(1e9, 1000) == FixedKL(0.05)


@pytest.mark.parametrize("controller", [FixedKL(0.05), AdaptiveKL(0.1, 6.0, 1e4)])
def test_controllers_survive_a_checkpoint_as_json(controller):
    assert kl_controller(json.loads(json.dumps(controller.state_dict()))) == controller


def test_nan_kl_is_refused_rather_than_stored():
    with pytest.raises(ValueError, match="skip the controller's update"):
        AdaptiveKL(0.1, 6.0, 1e4).update(math.nan, 8)


def test_bad_controllers_are_refused():
    with pytest.raises(ValueError, match="set both above 0"):
        AdaptiveKL(0.1, 0.0, 1e4)
    with pytest.raises(ValueError, match="'fixed' or 'adaptive'"):
        kl_controller({"kind": "pid", "coef": 1.0})
