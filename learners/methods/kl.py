"""KL to a reference: three estimators per token, and the one that decides; the controllers of its coefficient are given
on (kl_control.py).

In: token log-probs of two policies (any shape). Out: estimates per token. Left out on purpose: where the KL goes
(reward: `advantages`; loss: `policy_losses`) and masking, which both do before they call.
"""

from __future__ import annotations

import torch
from torch import Tensor

from learners.methods.aggregation import real
from learners.methods.kl_control import AdaptiveKL, FixedKL, kl_controller
from learners.methods.presets import KL_KINDS

__all__ = ["AdaptiveKL", "FixedKL", "bounded_exp", "kl_controller", "kl_tokens", "steady_kl"]

EXPONENT_BOUND = 20.0
"""Exponents are clamped to ± this; exp(20) is 4.9e8."""


def bounded_exp(x: Tensor) -> Tensor:
    """exp(x) with x clamped to ±20; the gradient beyond is 0."""
    return x.clamp(-EXPONENT_BOUND, EXPONENT_BOUND).exp()


def kl_tokens(lp: Tensor, ref: Tensor, kind: str) -> Tensor:
    """Per-token estimate of KL(policy || ref) in nats from samples of the policy, any shape (Schulman 2020,
    "Approximating KL divergence").

    k1 = lp - ref, unbiased, signed. k2 = (lp - ref)^2 / 2, biased. k3 = exp(ref - lp) - (ref - lp) - 1, unbiased, >= 0.
    Beyond ref - lp = 20 k3's exponential is constant; the linear term's gradient, alone, would then push lp further
    down, so it is cut there too: value as above, gradient 0.
    """
    if kind not in KL_KINDS:
        raise ValueError(f"The KL kind is {kind!r}; set it to one of {', '.join(KL_KINDS)}.")
    d = real(lp) - real(ref)
    if kind == "k1":
        return d
    if kind == "k2":
        return 0.5 * d.square()
    linear = torch.where(-d > EXPONENT_BOUND, d.detach(), d)
    # expm1, for exp(x) - 1 - x loses x^2 / 2 to rounding: in float32 a tenth of it at x = 1e-3, all of it below 1e-4.
    return (-d).clamp(-EXPONENT_BOUND, EXPONENT_BOUND).expm1() + linear


def steady_kl(lp: Tensor, ref: Tensor) -> Tensor:
    """k1 within ±20 nats, per token: what an early stop, an alarm or a controller reads, as a mean or summed over a
    sequence. One of N tokens adds at most 20 / N to the mean, where k3 adds its exponential: a single ref - lp of 15
    adds exp(15) / N."""
    return kl_tokens(lp, ref, "k1").clamp(-EXPONENT_BOUND, EXPONENT_BOUND)
