"""From a loss per token to one number that is the same however the batch was cut.

In: losses and a mask, padded [B, T], and the totals of the whole global mini-batch. Out: a scalar whose sum over
micro-batches and ranks is the unsplit loss, gradient included. Left out on purpose: undoing what an engine divides by
(accumulation steps, ranks): that is the engine's. Also here: `masked`, the one way in which padding is kept out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from learners.methods.presets import AGGREGATIONS


@dataclass(frozen=True, slots=True)
class BatchTotals:
    """Counts over the whole global mini-batch: tokens N = sum of the mask; rows with at least one such token."""

    tokens: float
    rows: float


def batch_totals(mask_BT: Tensor) -> BatchTotals:
    """Totals of this tensor; add them over micro-batches and ranks to get the global ones."""
    return BatchTotals(tokens=float(mask_BT.sum().item()), rows=float(mask_BT.any(dim=-1).sum().item()))


def real(x: Tensor) -> Tensor:
    """x in float32 or better: float64 stays, anything else becomes float32."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def masked(x: Tensor, mask: Tensor) -> Tensor:
    """x in float32 or better, zero outside the mask.

    Selecting before any maths, never multiplying, is what keeps NaN and inf of padding out of values and gradients:
    0 * NaN is NaN, and so is the gradient of a function at NaN even where its value is thrown away later.
    """
    if mask.dtype != torch.bool:
        raise ValueError(f"The mask has dtype {mask.dtype}; pass a boolean one (mask.bool()).")
    x = real(x)
    return torch.where(mask, x, torch.zeros((), dtype=x.dtype, device=x.device))


def row_counts(mask_BT: Tensor) -> Tensor:
    """n_i as int64 [B, 1], at least 1 so that an empty row divides to 0 and not to NaN."""
    return mask_BT.sum(dim=-1, keepdim=True).clamp(min=1)


def aggregate(
    loss_BT: Tensor,
    mask_BT: Tensor,
    mode: str,
    totals: BatchTotals | None = None,
    horizon: float | None = None,
) -> Tensor:
    """Token losses to a scalar.

    token-mean: sum / N (DAPO, Yu et al. 2025, eq. 12). seq-mean-token-sum: sum / #rows. seq-mean-token-mean: the mean
    of row means (GRPO, Shao et al. 2024, eq. 3). seq-mean-token-sum-norm: sum / (#rows * L), L = `horizon` in tokens
    (Dr. GRPO, Liu et al. 2025). N and #rows (non-empty rows) come from `totals`; None: this tensor is the whole batch.
    A batch without tokens gives 0, still attached to the graph.
    """
    if mode not in AGGREGATIONS:
        raise ValueError(f"aggregation is {mode!r}; set it to one of {', '.join(AGGREGATIONS)}.")
    totals = batch_totals(mask_BT) if totals is None else totals
    loss_BT = masked(loss_BT, mask_BT)
    if mode == "token-mean":
        return loss_BT.sum() / max(totals.tokens, 1.0)
    rows = max(totals.rows, 1.0)
    if mode == "seq-mean-token-sum":
        return loss_BT.sum() / rows
    if mode == "seq-mean-token-mean":
        return (loss_BT.sum(dim=-1, keepdim=True) / row_counts(mask_BT)).sum() / rows
    if horizon is None or not horizon > 0:
        raise ValueError(
            f"aggregation seq-mean-token-sum-norm divides by a horizon in tokens, got {horizon}; set it to a positive "
            "constant such as the longest response allowed."
        )
    return loss_BT.sum() / (rows * horizon)


def token_mean(x_BT: Tensor, mask_BT: Tensor, totals: BatchTotals) -> Tensor:
    """An additive metric, detached, summed in float64: this part's share of the mean of x over the N tokens of the
    global mini-batch."""
    return masked(x_BT.detach(), mask_BT).sum(dtype=torch.float64) / max(totals.tokens, 1.0)
