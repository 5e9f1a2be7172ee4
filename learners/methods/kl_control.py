"""What steers the coefficient of the KL to a reference. No torch: the driver holds these.

In: a measured KL. Out: a new controller. Frozen values with a plain-dict form, so a checkpoint holds them as data. Left
out: measuring (kl.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace


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
