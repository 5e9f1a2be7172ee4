"""The policy-gradient losses: ratio, surrogate, correction, KL and entropy, each a small function.

In: token log-probs, advantages and a mask, padded [B, T]; settings (`presets.PolicyLossSettings`). Out: a scalar loss
and additive metrics. A new method is one function and one line in RATIOS, SURROGATES or CORRECTIONS, and its name in
`presets`. Left out on purpose: advantages, log-probs from logits (temperature belongs there), anything that steps.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from learners.methods.aggregation import BatchTotals, aggregate, batch_totals, masked, row_counts, token_mean
from learners.methods.kl import bounded_exp, kl_tokens, steady_kl
from learners.methods.presets import PolicyLossSettings

# --- ratios: (d_BT zero outside the mask, mask_BT) -> (ratio_BT, share: what a token carries of its row's loss) ---


def token_ratio(d_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor | float]:
    """exp(d) per token, d clamped to ±20 (PPO, Schulman et al. 2017, eq. 6)."""
    return bounded_exp(d_BT), 1.0


def sequence_mean_ratio(d_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor | float]:
    """exp(sum(d) / n) of the row on each of its tokens (GSPO, Zheng et al. 2025, eq. 7). The mean is clamped, not d.

    Each token holds the row's whole loss, so the row mean of `seq-mean-token-mean` is the sequence's loss.
    """
    return bounded_exp(d_BT.sum(dim=-1, keepdim=True) / row_counts(mask_BT)).expand_as(d_BT), 1.0


def sequence_sum_ratio(d_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor | float]:
    """exp(sum(d)) of the row, the response being one action (RLOO, Ahmadian et al. 2024). The sum is clamped, not d.

    Each token holds 1/n of the row's loss, so the row sum of `seq-mean-token-sum` is the sequence's loss once, and the
    gradient at ratio 1 is REINFORCE's, A * grad(sum(lp)), whatever the length.
    """
    return bounded_exp(d_BT.sum(dim=-1, keepdim=True)).expand_as(d_BT), 1.0 / row_counts(mask_BT)


RATIOS: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor | float]]] = {
    "token": token_ratio,
    "sequence_mean": sequence_mean_ratio,
    "sequence_sum": sequence_sum_ratio,
}

# --- surrogates: (ratio_BT, lp_BT, advantages_BT, settings) -> (loss_BT, clipped_BT) ---


def clipped_surrogate(
    ratio_BT: Tensor, lp_BT: Tensor, advantages_BT: Tensor, settings: PolicyLossSettings
) -> tuple[Tensor, Tensor]:
    """max(-r A, -clip(r, 1 - lo, 1 + hi) A) (PPO, eq. 7; lo and hi apart: DAPO, Yu et al. 2025, eq. 10).

    Dual clip (Ye et al. 2020): min(that, -c A) where A < 0. clipped: the clipped branch is the larger one, or
    the dual bound holds: in both the token has no gradient.
    """
    plain_BT = -ratio_BT * advantages_BT
    bounded_BT = -ratio_BT.clamp(1.0 - settings.clip_low, 1.0 + settings.clip_high) * advantages_BT
    loss_BT = torch.maximum(plain_BT, bounded_BT)
    clipped_BT = bounded_BT > plain_BT
    if settings.dual_clip is not None:
        ceiling_BT = -settings.dual_clip * advantages_BT
        over_BT = (advantages_BT < 0) & (loss_BT > ceiling_BT)
        loss_BT = torch.where(over_BT, ceiling_BT, loss_BT)
        clipped_BT = clipped_BT | over_BT
    return loss_BT, clipped_BT


def cispo_surrogate(
    ratio_BT: Tensor, lp_BT: Tensor, advantages_BT: Tensor, settings: PolicyLossSettings
) -> tuple[Tensor, Tensor]:
    """-sg(clip(r, 1 - lo, 1 + hi)) A lp (MiniMax-M1, 2025, eq. 4): every token keeps a gradient; its weight is capped.

    clipped: the ratio was outside the bounds.
    """
    weight_BT = ratio_BT.detach().clamp(1.0 - settings.clip_low, 1.0 + settings.clip_high)
    return -weight_BT * advantages_BT * lp_BT, weight_BT != ratio_BT.detach()


SURROGATES: dict[str, Callable[[Tensor, Tensor, Tensor, PolicyLossSettings], tuple[Tensor, Tensor]]] = {
    "clip": clipped_surrogate,
    "cispo": cispo_surrogate,
}

# --- corrections: (gap_BT = old - roll, zero outside the mask, settings) -> weight_BT, no gradient ---


def token_tis(gap_BT: Tensor, settings: PolicyLossSettings) -> Tensor:
    """min(exp(old - roll), cap) per token (truncated importance sampling, Ionides 2008; Yao et al. 2025)."""
    return bounded_exp(gap_BT).clamp(max=settings.correction_cap)


def sequence_tis(gap_BT: Tensor, settings: PolicyLossSettings) -> Tensor:
    """min(exp(sum(old - roll)), cap) of the row on each of its tokens."""
    weight_B1 = bounded_exp(gap_BT.sum(dim=-1, keepdim=True)).clamp(max=settings.correction_cap)
    return weight_B1.expand_as(gap_BT)


def icepop(gap_BT: Tensor, settings: PolicyLossSettings) -> Tensor:
    """exp(old - roll) within [floor, cap], 0 outside (IcePop, Ling team 2025)."""
    weight_BT = bounded_exp(gap_BT)
    inside_BT = (weight_BT >= settings.correction_floor) & (weight_BT <= settings.correction_cap)
    return torch.where(inside_BT, weight_BT, torch.zeros_like(weight_BT))


CORRECTIONS: dict[str, Callable[[Tensor, PolicyLossSettings], Tensor]] = {
    "token_tis": token_tis,
    "sequence_tis": sequence_tis,
    "icepop": icepop,
}


CURVES = ("kl/ref", "policy/ratio", "policy/approx_kl", "policy/correction_weight")
"""Metrics that are means of exponentials: one token may move them to anything, so they are shown and decide nothing."""


def policy_loss(
    lp_BT: Tensor,
    old_BT: Tensor,
    advantages_BT: Tensor,
    mask_BT: Tensor,
    settings: PolicyLossSettings,
    *,
    roll: Tensor | None = None,
    ref: Tensor | None = None,
    entropy: Tensor | None = None,
    totals: BatchTotals | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """One policy loss; to be minimised.

    All tensors [B, T]. Log-probs in nats of the sampled tokens: lp current policy, old before the update, roll the
    rollout engine, ref the reference; mask True on real response tokens. Only lp and entropy (of the
    temperature-scaled distribution, nats) carry a gradient. Per token: surrogate * correction + kl_coef * KL(lp, ref)
    - entropy_coef * entropy; then `aggregate` with `totals`, the global mini-batch's (None: this tensor is the whole).
    Metrics: see `_metrics`.
    """
    _check(settings, roll, ref, entropy)
    totals = batch_totals(mask_BT) if totals is None else totals
    lp_BT = masked(lp_BT, mask_BT)
    old_BT = masked(old_BT.detach(), mask_BT)
    advantages_BT = masked(advantages_BT.detach(), mask_BT)
    roll_BT = None if roll is None else masked(roll.detach(), mask_BT)
    ref_BT = None if ref is None else masked(ref.detach(), mask_BT)
    entropy_BT = None if entropy is None else masked(entropy, mask_BT)

    ratio_BT, share = RATIOS[settings.ratio](lp_BT - old_BT, mask_BT)
    loss_BT, clipped_BT = SURROGATES[settings.kind](ratio_BT, lp_BT, advantages_BT, settings)
    loss_BT = loss_BT * share
    weight_BT = None
    if settings.correction != "none":
        assert roll_BT is not None, "checked above: a correction comes with roll"
        weight_BT = CORRECTIONS[settings.correction](old_BT - roll_BT, settings)
        loss_BT = loss_BT * weight_BT
    if settings.kl_kind is not None:
        assert ref_BT is not None, "checked above: a KL comes with ref"
        loss_BT = loss_BT + settings.kl_coef * kl_tokens(lp_BT, ref_BT, settings.kl_kind)
    if entropy_BT is not None and settings.entropy_coef != 0.0:
        loss_BT = loss_BT - settings.entropy_coef * entropy_BT
    loss = aggregate(loss_BT, mask_BT, settings.aggregation, totals, settings.horizon)

    tokens = {"policy/clip_fraction": clipped_BT, "policy/ratio": ratio_BT, "policy/correction_weight": weight_BT}
    metrics = _metrics(tokens, lp_BT, old_BT, mask_BT, totals, roll_BT=roll_BT, ref_BT=ref_BT, entropy_BT=entropy_BT)
    return loss, {"policy/loss": loss.detach(), **metrics}


def _metrics(
    tokens: dict[str, Tensor | None],
    lp_BT: Tensor,
    old_BT: Tensor,
    mask_BT: Tensor,
    totals: BatchTotals,
    *,
    roll_BT: Tensor | None,
    ref_BT: Tensor | None,
    entropy_BT: Tensor | None,
) -> dict[str, Tensor]:
    """Token means over the global mini-batch, detached, each already divided by its N: summed over micro-batches and
    ranks they are the batch's. A metric whose input is absent is absent.

    policy/approx_kl: k3 of KL(old || lp), r - 1 - log r (the tokens were sampled from old). kl/ref, kl/ref_k1: k3 and
    k1 (`steady_kl`) of KL(lp || ref), nats a token; the first is a curve, the second is what decides.
    policy/mismatch: |roll - old|. policy/correction_weight: the weight on the surrogate.
    """
    lp_BT = lp_BT.detach()
    tokens = {**tokens, "policy/approx_kl": kl_tokens(old_BT, lp_BT, "k3"), "policy/entropy": entropy_BT}
    if ref_BT is not None:
        tokens["kl/ref"] = kl_tokens(lp_BT, ref_BT, "k3")
        tokens["kl/ref_k1"] = steady_kl(lp_BT, ref_BT)
    if roll_BT is not None:
        tokens["policy/mismatch"] = (roll_BT - old_BT).abs()
    return {name: token_mean(x_BT, mask_BT, totals) for name, x_BT in tokens.items() if x_BT is not None}


def _check(settings: PolicyLossSettings, roll: Tensor | None, ref: Tensor | None, entropy: Tensor | None) -> None:
    if settings.correction != "none" and roll is None:
        raise ValueError(
            f"Correction {settings.correction} weighs by the rollout engine's log-probs; pass roll, or set correction "
            "to none."
        )
    if settings.kl_kind is not None and ref is None:
        raise ValueError("The KL in the loss needs the reference's log-probs; pass ref, or set kl_kind to None.")
    if settings.entropy_coef != 0.0 and entropy is None:
        raise ValueError("The entropy bonus needs the entropies; pass entropy, or set entropy_coef to 0.")
