"""Aggregation: four means by hand, and the promise that no cut of the batch changes the loss or its gradient."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learners.methods.aggregation import BatchTotals, aggregate, batch_totals, masked, token_mean
from learners.methods.presets import AGGREGATIONS

MASK = torch.tensor([[1, 1, 0], [0, 0, 0], [1, 0, 0]], dtype=torch.bool)
LOSS = torch.tensor([[1.0, 2.0, 9.0], [9.0, 9.0, 9.0], [5.0, 9.0, 9.0]])


def test_totals_count_tokens_and_only_rows_that_have_one():
    assert batch_totals(MASK) == BatchTotals(tokens=3.0, rows=2.0)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("token-mean", 8 / 3),  # (1 + 2 + 5) / 3 tokens
        ("seq-mean-token-sum", 4.0),  # (3 + 5) / 2 rows; the empty row is no row
        ("seq-mean-token-mean", 3.25),  # (1.5 + 5) / 2
        ("seq-mean-token-sum-norm", 0.4),  # 8 / (2 rows * L = 10)
    ],
)
def test_each_mode_gives_the_number_worked_out_by_hand(mode, expected):
    assert aggregate(LOSS, MASK, mode, horizon=10).item() == pytest.approx(expected)


@pytest.mark.parametrize("mode", AGGREGATIONS)
def test_batch_without_tokens_gives_zero_with_a_gradient_of_zero(mode):
    loss_BT = torch.full((2, 3), math.nan, requires_grad=True)
    total = aggregate(loss_BT, torch.zeros(2, 3, dtype=torch.bool), mode, horizon=4)
    total.backward()
    assert total.item() == 0.0
    assert torch.equal(loss_BT.grad, torch.zeros(2, 3))


def test_unknown_mode_names_the_known_ones():
    with pytest.raises(ValueError, match=r"'mean'; set it to one of token-mean, seq-mean-token-sum"):
        aggregate(LOSS, MASK, "mean")


@pytest.mark.parametrize("horizon", [None, 0])
def test_norm_mode_without_a_horizon_says_to_set_one(horizon):
    with pytest.raises(ValueError, match="set it to a positive constant"):
        aggregate(LOSS, MASK, "seq-mean-token-sum-norm", horizon=horizon)


def test_integer_mask_is_refused_with_the_fix():
    with pytest.raises(ValueError, match=r"pass a boolean one \(mask.bool\(\)\)"):
        masked(LOSS, MASK.long())


def test_half_precision_is_summed_in_float32_and_float64_stays():
    ones = torch.ones(1, 4096, dtype=torch.bfloat16)
    mask = torch.ones(1, 4096, dtype=torch.bool)
    assert aggregate(ones, mask, "seq-mean-token-sum").dtype == torch.float32
    assert aggregate(ones, mask, "seq-mean-token-sum").item() == 4096.0
    assert aggregate(ones.double(), mask, "token-mean").dtype == torch.float64


@pytest.mark.parametrize("mode", AGGREGATIONS)
@pytest.mark.parametrize("poison", [math.nan, math.inf, 1e4])
def test_values_outside_the_mask_change_no_bit(mode, poison):
    def run(filler):
        loss_BT = torch.where(MASK, LOSS, filler).requires_grad_()
        total = aggregate(loss_BT.exp().log(), MASK, mode, horizon=7)
        total.backward()
        return total, loss_BT.grad[MASK]

    clean, poisoned = run(0.0), run(poison)
    assert torch.equal(clean[0], poisoned[0])
    assert torch.equal(clean[1], poisoned[1])


@st.composite
def cut_batches(draw):
    rows, width = draw(st.integers(1, 7)), draw(st.integers(1, 6))
    seed = draw(st.integers(0, 10_000))
    generator = torch.Generator().manual_seed(seed)
    loss_BT = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    mask_BT = torch.rand(rows, width, generator=generator) < draw(st.sampled_from([0.2, 0.6, 1.0]))
    parts = draw(st.integers(1, rows))
    order = torch.randperm(rows, generator=generator)
    return loss_BT, mask_BT, order, parts


@settings(max_examples=60, deadline=None)
@given(cut_batches(), st.sampled_from(AGGREGATIONS), st.integers(0, 3))
def test_cutting_permuting_and_padding_change_neither_loss_nor_gradient(batch, mode, padding):
    loss_BT, mask_BT, order, parts = batch
    whole_BT = loss_BT.clone().requires_grad_()
    whole = aggregate(whole_BT, mask_BT, mode, horizon=5)
    whole.backward()
    cut_BT = loss_BT.clone().requires_grad_()
    totals = batch_totals(mask_BT)
    pieces = []
    for rows in order.chunk(parts):
        pad = (0, padding)
        piece_BT = torch.nn.functional.pad(cut_BT[rows], pad, value=1e4)
        pieces.append(aggregate(piece_BT, torch.nn.functional.pad(mask_BT[rows], pad), mode, totals, horizon=5))
    sum(pieces).backward()
    assert sum(p.item() for p in pieces) == pytest.approx(whole.item(), abs=1e-12)
    torch.testing.assert_close(cut_BT.grad, whole_BT.grad)


def test_token_mean_metric_is_detached_and_adds_up():
    x_BT = LOSS.clone().requires_grad_()
    totals = batch_totals(MASK)
    parts = [token_mean(x_BT[i : i + 1], MASK[i : i + 1], totals) for i in range(3)]
    assert not parts[0].requires_grad
    assert sum(p.item() for p in parts) == pytest.approx(8 / 3)
