"""Losses on preference pairs and on single judged responses: DPO and its relatives, and the reward model's.

In: log-probs summed over response tokens, and token counts, as [P] tensors (P pairs); `presets.PreferenceSettings`.
Out: a scalar loss and additive metrics: divided by `total_pairs` of the global mini-batch, they add up over
micro-batches and ranks. A new loss is one function here and one line in presets.PREFERENCE_LOSSES. Left out on
purpose: the forward, and which pairs there are.

In every formula u = lp_c - ref_c, v = lp_r - ref_r (without a reference: lp; for a length-averaged loss: divided by the
token count), x = beta (u - v), e = label smoothing, ls = log sigmoid.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from learners.methods.aggregation import masked, real
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


@dataclass(frozen=True, slots=True, eq=False)
class _Terms:
    """What a loss sees, [P] each: u, v as above; nll: chosen response's mean negative log-prob per token, nats."""

    u_P: Tensor
    v_P: Tensor
    nll_P: Tensor
    baseline: Tensor | float | None


_FUNCTIONS: dict[str, Callable[[_Terms, PreferenceSettings], Tensor]] = {}


def _loss(function: Callable[[_Terms, PreferenceSettings], Tensor]) -> Callable[[_Terms, PreferenceSettings], Tensor]:
    """Registers [P] losses under the function's name without its underscore."""
    _FUNCTIONS[function.__name__.removeprefix("_")] = function
    return function


@_loss
def _sigmoid(t: _Terms, s: PreferenceSettings) -> Tensor:
    """-(1-e) ls(x) - e ls(-x): DPO (Rafailov et al. 2023, eq. 7); e > 0: cDPO (Mitchell 2023)."""
    x_P = s.beta * (t.u_P - t.v_P)
    return -(1.0 - s.label_smoothing) * logsigmoid(x_P) - s.label_smoothing * logsigmoid(-x_P)


@_loss
def _robust(t: _Terms, s: PreferenceSettings) -> Tensor:
    """[-(1-e) ls(x) + e ls(-x)] / (1 - 2e): rDPO (Chowdhury et al. 2024), unbiased under flipped labels."""
    x_P = s.beta * (t.u_P - t.v_P)
    e = s.label_smoothing
    return (-(1.0 - e) * logsigmoid(x_P) + e * logsigmoid(-x_P)) / (1.0 - 2.0 * e)


@_loss
def _hinge(t: _Terms, s: PreferenceSettings) -> Tensor:
    """max(0, 1 - x) (SLiC, Zhao et al. 2023; in this form Liu et al. 2023, RSO)."""
    return torch.relu(1.0 - s.beta * (t.u_P - t.v_P))


@_loss
def _ipo(t: _Terms, s: PreferenceSettings) -> Tensor:
    """(u - v - 1 / (2 beta))^2, u and v length-averaged (Azar et al. 2023, eq. 17; beta is their tau)."""
    return (t.u_P - t.v_P - 1.0 / (2.0 * s.beta)).square()


@_loss
def _exo_pair(t: _Terms, s: PreferenceSettings) -> Tensor:
    """KL((σ(x), σ(-x)) || (1-e, e)), e at least 1e-3 (EXO, Ji et al. 2024, eq. 16)."""
    e = max(s.label_smoothing, 1e-3)
    x_P = s.beta * (t.u_P - t.v_P)
    chosen_P = torch.sigmoid(x_P) * (logsigmoid(x_P) - math.log1p(-e))
    return chosen_P + torch.sigmoid(-x_P) * (logsigmoid(-x_P) - math.log(e))


@_loss
def _nca_pair(t: _Terms, s: PreferenceSettings) -> Tensor:
    """-ls(beta u) - ls(-beta u) / 2 - ls(-beta v) / 2 (NCA, Chen et al. 2024, for K = 2 with hard labels)."""
    u_P, v_P = s.beta * t.u_P, s.beta * t.v_P
    return -logsigmoid(u_P) - 0.5 * logsigmoid(-u_P) - 0.5 * logsigmoid(-v_P)


@_loss
def _sppo_hard(t: _Terms, s: PreferenceSettings) -> Tensor:
    """(u - 1/(2 beta))^2 + (v + 1/(2 beta))^2: win probability 1 and 0 (SPPO, Wu et al. 2024)."""
    half = 0.5 / s.beta
    return (t.u_P - half).square() + (t.v_P + half).square()


@_loss
def _apo_zero(t: _Terms, s: PreferenceSettings) -> Tensor:
    """(1 - σ(beta u)) + σ(beta v): chosen up, rejected down (APO, D'Oosterlinck et al. 2024, eq. 7)."""
    return torch.sigmoid(-s.beta * t.u_P) + torch.sigmoid(s.beta * t.v_P)


@_loss
def _apo_down(t: _Terms, s: PreferenceSettings) -> Tensor:
    """σ(beta u) + (1 - σ(x)): both down, rejected more (APO, D'Oosterlinck et al. 2024, eq. 8)."""
    return torch.sigmoid(s.beta * t.u_P) + torch.sigmoid(-s.beta * (t.u_P - t.v_P))


@_loss
def _discopop(t: _Terms, s: PreferenceSettings) -> Tensor:
    """-(1 - w) ls(x) + w exp(-x), w = σ(x / tau) (DiscoPOP's LRML, Lu et al. 2024, eq. 5).

    w exp(-x) is taken as exp(ls(x / tau) - x): for x far below 0 one factor overflows and the other vanishes.
    """
    x_P = s.beta * (t.u_P - t.v_P)
    scaled_P = x_P / s.discopop_tau
    return -torch.sigmoid(-scaled_P) * logsigmoid(x_P) + torch.exp(logsigmoid(scaled_P) - x_P)


def _kto_values(ratio: Tensor, desirable: Tensor, baseline: Tensor | float, s: PreferenceSettings) -> Tensor:
    """lambda_D (1 - σ(beta (u - z))) where desirable, else lambda_U (1 - σ(beta (z - u))), z = `kto_baseline` (KTO,
    Ethayarajh et al. 2024)."""
    gap = s.beta * (ratio - baseline)
    return torch.where(desirable, s.desirable_weight * torch.sigmoid(-gap), s.undesirable_weight * torch.sigmoid(gap))


@_loss
def _kto(t: _Terms, s: PreferenceSettings) -> Tensor:
    """The mean of the chosen's loss as a desirable response and the rejected's as an undesirable one (`kto_loss`)."""
    if t.baseline is None:
        raise ValueError("KTO compares with a KL baseline; pass baseline=kto_baseline(...) of the whole mini-batch.")
    yes_P = torch.ones_like(t.u_P, dtype=torch.bool)
    return 0.5 * (_kto_values(t.u_P, yes_P, t.baseline, s) + _kto_values(t.v_P, ~yes_P, t.baseline, s))


@_loss
def _orpo(t: _Terms, s: PreferenceSettings) -> Tensor:
    """NLL - beta ls(log odds(u) - log odds(v)), odds(a) = e^a / (1 - e^a), length-averaged (ORPO, Hong et al. 2024,
    eq. 6; beta is their lambda). NLL: mean per chosen token. a is kept 1e-6 below 0, where the odds are infinite."""
    u_P, v_P = t.u_P.clamp(max=-1e-6), t.v_P.clamp(max=-1e-6)
    log_odds_P = (u_P - v_P) - (torch.log(-torch.expm1(u_P)) - torch.log(-torch.expm1(v_P)))
    return t.nll_P - s.beta * logsigmoid(log_odds_P)


@_loss
def _simpo(t: _Terms, s: PreferenceSettings) -> Tensor:
    """-ls(x - gamma), length-averaged (SimPO, Meng et al. 2024, eq. 6)."""
    return -logsigmoid(s.beta * (t.u_P - t.v_P) - s.simpo_gamma)


@_loss
def _cpo(t: _Terms, s: PreferenceSettings) -> Tensor:
    """-ls(x) on summed log-probs + alpha NLL, NLL the mean per chosen token (CPO, Xu et al. 2024; the
    mean, not the sum, as its authors train)."""
    return -logsigmoid(s.beta * (t.u_P - t.v_P)) + s.nll_coef * t.nll_P


@dataclass(frozen=True, slots=True)
class _Method:
    loss: Callable[[_Terms, PreferenceSettings], Tensor]
    reference: bool
    averaged: bool


LOSSES = {name: _Method(_FUNCTIONS[name], facts.reference, facts.averaged) for name, facts in PREFERENCE_LOSSES.items()}


def preference_loss(
    pairs: Pairs,
    settings: PreferenceSettings,
    *,
    total_pairs: float | None = None,
    baseline: Tensor | float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The mean loss over pairs; to be minimised. total_pairs: pairs of the whole global mini-batch (None: these are
    all); baseline: KTO's. Only chosen_P and rejected_P carry a gradient.

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
    loss_P = method.loss(_Terms(u_P, v_P, -chosen_P / chosen_tokens_P, baseline), settings)
    total = _total(valid_P, total_pairs)
    loss = masked(loss_P, valid_P).sum() / total
    return loss, _metrics(loss, settings.beta * u_P, settings.beta * v_P, valid_P, total)


def _total(valid_P: Tensor, total_pairs: float | None) -> float:
    return max(float(valid_P.sum().item()) if total_pairs is None else total_pairs, 1.0)


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
    loss_R = _kto_values(ratio_R, desirable_R, baseline, settings)
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
