"""The critic's loss, and how well its values explain the returns.

In: values, returns and a mask, padded [B, T]. Out: a scalar loss and additive metrics: summed over micro-batches and
ranks they are the global mini-batch's. Left out on purpose: GAE (`advantages`) and the value head (the model's).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from learners.methods.aggregation import BatchTotals, aggregate, batch_totals, masked, token_mean

EXPLAINED_VARIANCE_SUMS = (
    "value/return_mean",
    "value/return_square_mean",
    "value/error_mean",
    "value/error_square_mean",
)


def value_loss(
    values_BT: Tensor,
    old_values_BT: Tensor | None,
    returns_BT: Tensor,
    mask_BT: Tensor,
    clip: float | None,
    totals: BatchTotals | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """0.5 * max((V - R)^2, (V_old + clip(V - V_old, ±c) - R)^2), token mean (PPO's reference code; Ouyang et al. 2022).

    clip: c in units of the return; None: the plain squared error, then `old_values_BT` may be None. Only values_BT
    carries a gradient. Metrics, additive and detached: value/loss, value/clip_fraction (the clipped branch is the
    larger one), value/mean, and the four of EXPLAINED_VARIANCE_SUMS (float64), for `explained_variance`; their error
    is R - V_old, the critic's before this update (R - V where there is no V_old).
    """
    if clip is not None and old_values_BT is None:
        raise ValueError("Value clipping needs the values before the update; pass old_values, or set clip to None.")
    totals = batch_totals(mask_BT) if totals is None else totals
    values_BT = masked(values_BT, mask_BT)
    returns_BT = masked(returns_BT.detach(), mask_BT)
    old_BT = values_BT.detach() if old_values_BT is None else masked(old_values_BT.detach(), mask_BT)
    squared_BT = (values_BT - returns_BT).square()
    clipped_BT = torch.zeros_like(mask_BT)
    if clip is not None:
        near_BT = old_BT + (values_BT - old_BT).clamp(-clip, clip)
        bounded_BT = (near_BT - returns_BT).square()
        clipped_BT = bounded_BT > squared_BT
        squared_BT = torch.maximum(squared_BT, bounded_BT)
    loss = aggregate(0.5 * squared_BT, mask_BT, "token-mean", totals)
    error_BT = (returns_BT - old_BT).double()
    wide_BT = returns_BT.double()
    metrics = {
        "value/loss": loss.detach(),
        "value/clip_fraction": token_mean(clipped_BT, mask_BT, totals),
        "value/mean": token_mean(values_BT, mask_BT, totals),
        "value/return_mean": token_mean(wide_BT, mask_BT, totals),
        "value/return_square_mean": token_mean(wide_BT.square(), mask_BT, totals),
        "value/error_mean": token_mean(error_BT, mask_BT, totals),
        "value/error_square_mean": token_mean(error_BT.square(), mask_BT, totals),
    }
    return loss, metrics


def explained_variance(sums: Mapping[str, float | Tensor]) -> float:
    """1 - Var(R - V) / Var(R) from `value_loss`'s metrics after they were summed over every micro-batch and rank.

    1: perfect; 0: no better than a constant; below 0: worse. Var = E[x^2] - E[x]^2 (biased: the factor cancels).
    Returns without spread have nothing to explain: 0.
    """
    mean, square, error, error_square = (float(sums[name]) for name in EXPLAINED_VARIANCE_SUMS)
    variance = square - mean * mean
    # Below rounding of the float64 sums there is no spread to speak of.
    if variance <= 1e-12 * max(square, 1e-30):
        return 0.0
    return 1.0 - max(error_square - error * error, 0.0) / variance
