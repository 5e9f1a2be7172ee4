"""KL to a reference: the three per-token estimators, and the controllers of its coefficient.

In: token log-probs of two policies (any shape), or a measured KL. Out: estimates per token; a new controller state.
Controllers are frozen values with a plain-dict form, so a checkpoint holds them as data. Left out on purpose: where the
KL goes (reward: `advantages`; loss: `policy_losses`) and masking, which both do before they call.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from learners.aggregation import real
from learners.presets import KL_KINDS

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


@dataclass(frozen=True, slots=True)
class FixedKL:
    """A coefficient that stays."""

    coef: float

    def update(self, kl: float, n: int) -> FixedKL:
        return self

    def state_dict(self) -> dict[str, float | str]:
        return {"kind": "fixed", "coef": self.coef}


@dataclass(frozen=True, slots=True)
class AdaptiveKL:
    """A coefficient steered towards `target` (Ziegler et al. 2019, section 2.2).

    update: coef *= 1 + clip(kl / target - 1, ±0.2) * n / horizon. kl: mean over samples of the row-summed KL, nats per
    response, over the n samples seen since the last update; horizon in samples.
    """

    coef: float
    target: float
    horizon: float

    def __post_init__(self) -> None:
        if not (self.target > 0 and self.horizon > 0):
            raise ValueError(f"KL target {self.target} and horizon {self.horizon} must be positive; set both above 0.")

    def update(self, kl: float, n: int) -> AdaptiveKL:
        if not math.isfinite(kl):
            raise ValueError(f"The measured KL is {kl}; skip the controller's update for a step without a finite KL.")
        error = min(max(kl / self.target - 1.0, -0.2), 0.2)
        return replace(self, coef=self.coef * (1.0 + error * n / self.horizon))

    def state_dict(self) -> dict[str, float | str]:
        return {"kind": "adaptive", "coef": self.coef, "target": self.target, "horizon": self.horizon}


def kl_controller(state: Mapping[str, float | str]) -> FixedKL | AdaptiveKL:
    """The controller whose `state_dict` this is."""
    kind = state["kind"]
    if kind == "fixed":
        return FixedKL(coef=float(state["coef"]))
    if kind == "adaptive":
        return AdaptiveKL(coef=float(state["coef"]), target=float(state["target"]), horizon=float(state["horizon"]))
    raise ValueError(f"The KL controller's state has kind {kind!r}; it must be 'fixed' or 'adaptive'.")
