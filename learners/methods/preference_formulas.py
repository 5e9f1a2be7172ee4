"""What each preference loss makes of a pair: the published formulas, one function each.

In: `Terms` of P pairs and `presets.PreferenceSettings`. Out: losses [P]. A new one is a function here, named as
presets.PREFERENCE_LOSSES names it. Left out: where the terms come from, and the mean over pairs (preference_losses.py).

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

from learners.methods.presets import PreferenceSettings


@dataclass(frozen=True, slots=True, eq=False)
class Terms:
    """What a loss sees, [P] each: u, v as above. nll: chosen response's mean negative log-prob per token, nats.
    nll_share: its share of the mean over all chosen tokens of the global mini-batch, times the pairs: the mean over
    pairs is that mean."""

    u_P: Tensor
    v_P: Tensor
    nll_P: Tensor
    nll_share_P: Tensor
    baseline: Tensor | float | None


Formula = Callable[[Terms, PreferenceSettings], Tensor]
FORMULAS: dict[str, Formula] = {}


def _loss(function: Formula) -> Formula:
    """Registers [P] losses under the function's name without its underscore."""
    FORMULAS[function.__name__.removeprefix("_")] = function
    return function


@_loss
def _sigmoid(t: Terms, s: PreferenceSettings) -> Tensor:
    """-(1-e) ls(x) - e ls(-x): DPO (Rafailov et al. 2023, eq. 7); e > 0: cDPO (Mitchell 2023)."""
    x_P = s.beta * (t.u_P - t.v_P)
    return -(1.0 - s.label_smoothing) * logsigmoid(x_P) - s.label_smoothing * logsigmoid(-x_P)


@_loss
def _robust(t: Terms, s: PreferenceSettings) -> Tensor:
    """[-(1-e) ls(x) + e ls(-x)] / (1 - 2e): rDPO (Chowdhury et al. 2024), unbiased under flipped labels."""
    x_P = s.beta * (t.u_P - t.v_P)
    e = s.label_smoothing
    return (-(1.0 - e) * logsigmoid(x_P) + e * logsigmoid(-x_P)) / (1.0 - 2.0 * e)


@_loss
def _hinge(t: Terms, s: PreferenceSettings) -> Tensor:
    """max(0, 1 - x) (SLiC, Zhao et al. 2023; in this form Liu et al. 2023, RSO)."""
    return torch.relu(1.0 - s.beta * (t.u_P - t.v_P))


@_loss
def _ipo(t: Terms, s: PreferenceSettings) -> Tensor:
    """(u - v - 1 / (2 beta))^2, u and v length-averaged (Azar et al. 2023, eq. 17; beta is their tau)."""
    return (t.u_P - t.v_P - 1.0 / (2.0 * s.beta)).square()


@_loss
def _exo_pair(t: Terms, s: PreferenceSettings) -> Tensor:
    """KL((σ(x), σ(-x)) || (1-e, e)), e at least 1e-3 (EXO, Ji et al. 2024, eq. 16)."""
    e = max(s.label_smoothing, 1e-3)
    x_P = s.beta * (t.u_P - t.v_P)
    chosen_P = torch.sigmoid(x_P) * (logsigmoid(x_P) - math.log1p(-e))
    return chosen_P + torch.sigmoid(-x_P) * (logsigmoid(-x_P) - math.log(e))


@_loss
def _nca_pair(t: Terms, s: PreferenceSettings) -> Tensor:
    """-ls(beta u) - ls(-beta u) / 2 - ls(-beta v) / 2 (NCA, Chen et al. 2024, for K = 2 with hard labels)."""
    u_P, v_P = s.beta * t.u_P, s.beta * t.v_P
    return -logsigmoid(u_P) - 0.5 * logsigmoid(-u_P) - 0.5 * logsigmoid(-v_P)


@_loss
def _sppo_hard(t: Terms, s: PreferenceSettings) -> Tensor:
    """(u - 1/(2 beta))^2 + (v + 1/(2 beta))^2: win probability 1 and 0 (SPPO, Wu et al. 2024)."""
    half = 0.5 / s.beta
    return (t.u_P - half).square() + (t.v_P + half).square()


@_loss
def _apo_zero(t: Terms, s: PreferenceSettings) -> Tensor:
    """(1 - σ(beta u)) + σ(beta v): chosen up, rejected down (APO, D'Oosterlinck et al. 2024, eq. 7)."""
    return torch.sigmoid(-s.beta * t.u_P) + torch.sigmoid(s.beta * t.v_P)


@_loss
def _apo_down(t: Terms, s: PreferenceSettings) -> Tensor:
    """σ(beta u) + (1 - σ(x)): both down, rejected more (APO, D'Oosterlinck et al. 2024, eq. 8)."""
    return torch.sigmoid(s.beta * t.u_P) + torch.sigmoid(-s.beta * (t.u_P - t.v_P))


@_loss
def _discopop(t: Terms, s: PreferenceSettings) -> Tensor:
    """-(1 - w) ls(x) + w exp(-x), w = σ(x / tau) (DiscoPOP's LRML, Lu et al. 2024, eq. 5).

    w exp(-x) is taken as exp(ls(x / tau) - x): for x far below 0 one factor overflows and the other vanishes.
    """
    x_P = s.beta * (t.u_P - t.v_P)
    scaled_P = x_P / s.discopop_tau
    return -torch.sigmoid(-scaled_P) * logsigmoid(x_P) + torch.exp(logsigmoid(scaled_P) - x_P)


def kto_values(ratio: Tensor, desirable: Tensor, baseline: Tensor | float, s: PreferenceSettings) -> Tensor:
    """lambda_D (1 - σ(beta (u - z))) where desirable, else lambda_U (1 - σ(beta (z - u))), z = `kto_baseline` (KTO,
    Ethayarajh et al. 2024)."""
    gap = s.beta * (ratio - baseline)
    return torch.where(desirable, s.desirable_weight * torch.sigmoid(-gap), s.undesirable_weight * torch.sigmoid(gap))


@_loss
def _kto(t: Terms, s: PreferenceSettings) -> Tensor:
    """The mean of the chosen's loss as a desirable response and the rejected's as an undesirable one (`kto_loss`)."""
    if t.baseline is None:
        raise ValueError("KTO compares with a KL baseline; pass baseline=kto_baseline(...) of the whole mini-batch.")
    yes_P = torch.ones_like(t.u_P, dtype=torch.bool)
    return 0.5 * (kto_values(t.u_P, yes_P, t.baseline, s) + kto_values(t.v_P, ~yes_P, t.baseline, s))


@_loss
def _orpo(t: Terms, s: PreferenceSettings) -> Tensor:
    """NLL - beta ls(log odds(u) - log odds(v)), odds(a) = e^a / (1 - e^a), length-averaged (ORPO, Hong et al. 2024,
    eq. 6; beta is their lambda). NLL: the mean over each chosen response's tokens, then over pairs. a is kept 1e-6
    below 0, where the odds are infinite."""
    u_P, v_P = t.u_P.clamp(max=-1e-6), t.v_P.clamp(max=-1e-6)
    log_odds_P = (u_P - v_P) - (torch.log(-torch.expm1(u_P)) - torch.log(-torch.expm1(v_P)))
    return t.nll_P - s.beta * logsigmoid(log_odds_P)


@_loss
def _simpo(t: Terms, s: PreferenceSettings) -> Tensor:
    """-ls(x - gamma), length-averaged (SimPO, Meng et al. 2024, eq. 6)."""
    return -logsigmoid(s.beta * (t.u_P - t.v_P) - s.simpo_gamma)


@_loss
def _cpo(t: Terms, s: PreferenceSettings) -> Tensor:
    """-ls(x) on summed log-probs + alpha NLL, NLL the mean over all chosen response tokens of the global mini-batch
    (CPO, Xu et al. 2024; as its authors train, and not of each response first: long responses weigh more)."""
    return -logsigmoid(s.beta * (t.u_P - t.v_P)) + s.nll_coef * t.nll_share_P
