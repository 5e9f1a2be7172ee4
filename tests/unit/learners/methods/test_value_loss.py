"""The clipped value loss by hand, and explained variance assembled from parts."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learners.methods.aggregation import batch_totals
from learners.methods.value_loss import explained_variance, value_loss

ALL = torch.ones(1, 1, dtype=torch.bool)


def one(value, old, target, clip):
    return value_loss(torch.tensor([[value]]), torch.tensor([[old]]), torch.tensor([[target]]), ALL, clip)


@pytest.mark.parametrize(
    ("value", "old", "target", "clip", "expected"),
    [
        (3.0, 0.0, 1.0, None, 2.0),  # 0.5 * 2^2
        (1.0, 0.0, 1.0, 0.2, 0.32),  # perfect, but moved by 1: the clipped 0.2 misses by 0.8
        (3.0, 0.0, 1.0, 0.2, 2.0),  # max(2^2, 0.8^2) / 2
        (0.1, 0.0, 1.0, 0.2, 0.405),  # within the clip both branches are 0.9^2
    ],
)
def test_the_larger_of_plain_and_clipped_error_counts(value, old, target, clip, expected):
    assert one(value, old, target, clip)[0].item() == pytest.approx(expected)


def test_clip_fraction_counts_tokens_held_by_the_clip():
    assert one(1.0, 0.0, 1.0, 0.2)[1]["value/clip_fraction"].item() == 1.0
    assert one(0.1, 0.0, 1.0, 0.2)[1]["value/clip_fraction"].item() == 0.0


def test_clipping_without_old_values_says_what_to_pass():
    with pytest.raises(ValueError, match="pass old_values, or set clip to None"):
        value_loss(torch.zeros(1, 1), None, torch.zeros(1, 1), ALL, 0.2)


@pytest.mark.parametrize("clip", [None, 0.2])
def test_gradient_matches_finite_differences(clip):
    values = torch.tensor([[0.5, -1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([[0.45, 0.0, 1.95]], dtype=torch.float64)
    returns = torch.tensor([[1.0, 0.3, -1.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, True]])
    assert torch.autograd.gradcheck(lambda v: value_loss(v, old, returns, mask, clip)[0], (values,))


def test_explained_variance_of_a_hand_worked_case():
    # R = 0, 2, 4: variance 8/3. R - V = -1, 0, 1: variance 2/3. 1 - 1/4.
    returns = torch.tensor([[0.0, 2.0, 4.0]])
    values = torch.tensor([[1.0, 2.0, 3.0]])
    _, metrics = value_loss(values, None, returns, torch.ones(1, 3, dtype=torch.bool), None)
    assert explained_variance(metrics) == pytest.approx(0.75)


def test_values_off_by_a_constant_still_explain_all_variance():
    returns = torch.tensor([[0.0, 2.0, 4.0]])
    _, metrics = value_loss(returns + 5.0, None, returns, torch.ones(1, 3, dtype=torch.bool), None)
    assert explained_variance(metrics) == pytest.approx(1.0)


def test_explained_variance_looks_at_the_values_before_the_update():
    returns = torch.tensor([[0.0, 2.0, 4.0]])
    _, metrics = value_loss(returns, torch.full_like(returns, 2.0), returns, torch.ones(1, 3, dtype=torch.bool), 0.2)
    assert explained_variance(metrics) == pytest.approx(0.0)


def test_returns_without_spread_explain_nothing():
    returns = torch.full((1, 3), 0.1)
    _, metrics = value_loss(torch.randn(1, 3), None, returns, torch.ones(1, 3, dtype=torch.bool), None)
    assert explained_variance(metrics) == 0.0


@pytest.mark.parametrize("poison", [math.nan, math.inf, 1e4])
def test_values_outside_the_mask_change_no_bit(poison):
    mask = torch.tensor([[True, False, True], [False, False, False]])

    def run(filler):
        generator = torch.Generator().manual_seed(1)
        tensors = [torch.where(mask, torch.randn(2, 3, generator=generator), filler) for _ in range(3)]
        tensors[0].requires_grad_()
        loss, metrics = value_loss(*tensors, mask, 0.2)
        loss.backward()
        return torch.stack([loss.detach().double(), *(m.double() for m in metrics.values())]), tensors[0].grad

    for clean, poisoned in zip(run(0.0), run(poison), strict=True):
        assert torch.equal(clean, poisoned)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.sampled_from([None, 0.2]))
def test_micro_batches_add_up_to_the_whole(seed, parts, clip):
    generator = torch.Generator().manual_seed(seed)
    values, old, returns = torch.randn(3, 5, 4, generator=generator, dtype=torch.float64)
    mask = torch.rand(5, 4, generator=generator) < 0.6
    loss, metrics = value_loss(values, old, returns, mask, clip)
    totals, order = batch_totals(mask), torch.randperm(5, generator=generator)
    pieces = [value_loss(values[r], old[r], returns[r], mask[r], clip, totals) for r in order.chunk(parts)]
    assert sum(p[0].item() for p in pieces) == pytest.approx(loss.item(), abs=1e-12)
    summed = {name: sum(p[1][name] for p in pieces) for name in metrics}
    for name, value in metrics.items():
        assert summed[name].item() == pytest.approx(value.item(), abs=1e-12)
    assert explained_variance(summed) == pytest.approx(explained_variance(metrics), abs=1e-9)


def test_batch_without_tokens_is_zero_with_zero_gradient():
    values = torch.full((1, 2), math.nan, requires_grad=True)
    loss, metrics = value_loss(values, values.detach(), values.detach(), torch.zeros(1, 2, dtype=torch.bool), 0.2)
    loss.backward()
    assert loss.item() == 0.0 and torch.equal(values.grad, torch.zeros(1, 2))
    assert explained_variance(metrics) == 0.0
