"""Losses on preference pairs and on single judged responses: DPO and its relatives, and the reward model's.

In: log-probs summed over response tokens, and token counts, as [P] tensors (P pairs); `presets.PreferenceSettings`.
Out: a scalar loss and additive metrics: divided by the totals of the global mini-batch, they add up over
micro-batches and ranks. A new loss is one function in preference_formulas.py and one line in
presets.PREFERENCE_LOSSES. Left out on purpose: the forward, and which pairs there are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from learners.methods.aggregation import masked, real
from learners.methods.preference_formulas import FORMULAS, Formula, Terms, kto_values
from learners.methods.presets import PREFERENCE_LOSSES, PreferenceSettings


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """P pairs. Log-probs in nats, summed over each response's tokens; tokens: how many those are.

    valid_P False marks a filler row (None: all are pairs): it counts nowhere and may hold anything, NaN included.
    The references may be None for losses without one.
    """

    chosen_P: Tensor
    rejected_P: Tensor
    chosen_tokens_P: Tensor
    rejected_tokens_P: Tensor
    ref_chosen_P: Tensor | None = None
    ref_rejected_P: Tensor | None = None
    valid_P: Tensor | None = None


@dataclass(frozen=True, slots=True)
class _Method:
    loss: Formula
    reference: bool
    averaged: bool


LOSSES = {name: _Method(FORMULAS[name], facts.reference, facts.averaged) for name, facts in PREFERENCE_LOSSES.items()}


def preference_loss(
    pairs: Pairs,
    settings: PreferenceSettings,
    *,
    total_pairs: float | None = None,
    total_chosen_tokens: float | None = None,
    baseline: Tensor | float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The mean loss over pairs; to be minimised. total_pairs, total_chosen_tokens: pairs, and tokens of their chosen
    responses, of the whole global mini-batch (None: these are all; the tokens count in CPO alone); baseline: KTO's.
    Only chosen_P and rejected_P carry a gradient. ValueError for a part of a mini-batch without what the loss needs of
    the whole.

    Metrics, additive and detached: loss; rewards/chosen = beta u, rewards/rejected = beta v, preference/margin their
    difference, preference/accuracy the share of pairs whose margin is above 0.
    """
    method = LOSSES[settings.loss]
    valid_P = torch.ones_like(pairs.chosen_P, dtype=torch.bool) if pairs.valid_P is None else pairs.valid_P
    chosen_P, rejected_P = masked(pairs.chosen_P, valid_P), masked(pairs.rejected_P, valid_P)
    chosen_tokens_P = masked(pairs.chosen_tokens_P, valid_P).clamp(min=1.0)
    rejected_tokens_P = masked(pairs.rejected_tokens_P, valid_P).clamp(min=1.0)
    u_P, v_P = chosen_P, rejected_P
    if method.reference:
        if pairs.ref_chosen_P is None or pairs.ref_rejected_P is None:
            raise ValueError(
                f"Preference loss {settings.loss} compares with a reference; pass ref_chosen_P and ref_rejected_P, or "
                "use simpo, cpo or orpo."
            )
        u_P = u_P - masked(pairs.ref_chosen_P.detach(), valid_P)
        v_P = v_P - masked(pairs.ref_rejected_P.detach(), valid_P)
    if method.averaged:
        u_P, v_P = u_P / chosen_tokens_P, v_P / rejected_tokens_P
    total = _total(valid_P, total_pairs)
    tokens = _chosen_tokens(pairs, valid_P, settings, total, total_chosen_tokens)
    terms = Terms(u_P, v_P, -chosen_P / chosen_tokens_P, -chosen_P * (total / tokens), baseline)
    loss_P = method.loss(terms, settings)
    loss = masked(loss_P, valid_P).sum() / total
    return loss, _metrics(loss, settings.beta * u_P, settings.beta * v_P, valid_P, total)


def _total(valid_P: Tensor, total_pairs: float | None) -> float:
    return max(float(valid_P.sum().item()) if total_pairs is None else total_pairs, 1.0)


def _chosen_tokens(
    pairs: Pairs, valid_P: Tensor, settings: PreferenceSettings, total_pairs: float, given: float | None
) -> float:
    """Tokens of the chosen responses of the global mini-batch."""
    if given is None and settings.loss == "cpo" and total_pairs > max(float(valid_P.sum().item()), 1.0):
        raise ValueError(
            f"CPO's NLL is a mean over the chosen tokens of all {total_pairs:g} pairs, and these are a part of them; "
            "pass total_chosen_tokens."
        )
    own = float(masked(pairs.chosen_tokens_P, valid_P).sum().item())
    return max(own if given is None else given, 1.0)


def _metrics(loss: Tensor, chosen_P: Tensor, rejected_P: Tensor, valid_P: Tensor, total: float) -> dict[str, Tensor]:
    chosen_P, rejected_P = masked(chosen_P.detach(), valid_P), masked(rejected_P.detach(), valid_P)
    return {
        "loss": loss.detach(),
        "rewards/chosen": chosen_P.sum() / total,
        "rewards/rejected": rejected_P.sum() / total,
        "preference/margin": (chosen_P - rejected_P).sum() / total,
        "preference/accuracy": (chosen_P > rejected_P).sum(dtype=torch.float64) / total,
    }


def kto_baseline(mismatched_R: Tensor, ref_mismatched_R: Tensor) -> Tensor:
    """KTO's reference point z, a detached scalar: max(0, mean(lp - ref)) of mismatched pairs, each prompt with another
    prompt's response (Ethayarajh et al. 2024), summed log-probs [R]. Give it the whole global mini-batch,
    before that is cut: a mean that is clamped at 0 part by part is another number."""
    gap_R = real(mismatched_R.detach()) - real(ref_mismatched_R.detach())
    return gap_R.mean().clamp(min=0.0) if len(gap_R) else gap_R.sum()


def kto_loss(
    lp_R: Tensor,
    ref_R: Tensor,
    desirable_R: Tensor,
    baseline: Tensor | float,
    settings: PreferenceSettings,
    *,
    valid_R: Tensor | None = None,
    totals: tuple[float, float] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """KTO on single responses, each judged desirable (True) or not; lp, ref summed, [R]; the mean over responses.

    valid_R False marks a filler row. totals: (desirable, undesirable) responses of the global mini-batch (None: these
    are all). Metrics, additive: loss, rewards/chosen (mean of beta u over desirable ones), rewards/rejected,
    preference/margin.
    """
    valid_R = torch.ones_like(desirable_R) if valid_R is None else valid_R
    good_R, bad_R = valid_R & desirable_R, valid_R & ~desirable_R
    if totals is None:
        totals = (float(good_R.sum().item()), float(bad_R.sum().item()))
    ratio_R = masked(lp_R, valid_R) - masked(ref_R.detach(), valid_R)
    loss_R = kto_values(ratio_R, desirable_R, baseline, settings)
    loss = masked(loss_R, valid_R).sum() / max(sum(totals), 1.0)
    reward_R = settings.beta * ratio_R.detach()
    chosen = masked(reward_R, good_R).sum() / max(totals[0], 1.0)
    rejected = masked(reward_R, bad_R).sum() / max(totals[1], 1.0)
    return loss, {
        "loss": loss.detach(),
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "preference/margin": chosen - rejected,
    }


def reward_model_loss(
    chosen_P: Tensor,
    rejected_P: Tensor,
    *,
    margin_P: Tensor | None = None,
    centre_coef: float = 0.0,
    valid_P: Tensor | None = None,
    total_pairs: float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """mean(-ls(r_c - r_r - margin)) + c mean((r_c + r_r)^2), r the scalar scores [P] (Bradley-Terry; margin: Touvron et
    al. 2023, eq. 2; centring: Eisenstein et al. 2023). Metrics as `preference_loss`, rewards being the scores."""
    valid_P = torch.ones_like(chosen_P, dtype=torch.bool) if valid_P is None else valid_P
    chosen_P, rejected_P = masked(chosen_P, valid_P), masked(rejected_P, valid_P)
    gap_P = chosen_P - rejected_P
    if margin_P is not None:
        gap_P = gap_P - masked(margin_P.detach(), valid_P)
    total = _total(valid_P, total_pairs)
    loss_P = -logsigmoid(gap_P) + centre_coef * (chosen_P + rejected_P).square()
    loss = masked(loss_P, valid_P).sum() / total
    return loss, _metrics(loss, chosen_P, rejected_P, valid_P, total)
