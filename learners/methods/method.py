"""What a learner is told about the run: data only, torch-free, so that the config can make it.

In: nothing. Out: frozen settings and the columns of one step. Left out: what is done with them (learners/experience.py,
learners/policy.py, learners/critic.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from actors.types import Sample, SampleBatch, ScoreBatch
from learners.engines.settings import ModelSettings, OptimizerSettings, ZeroSettings
from learners.methods.presets import PreferenceSettings, Preset, RewardModelSettings

Column = TypeVar("Column")


@dataclass(frozen=True, slots=True)
class Method:
    """An on-policy method, resolved. Temperature is the sampling one: training divides logits by it too."""

    preset: Preset
    gamma: float = 1.0
    gae_lambda: float = 1.0
    value_clip: float | None = None
    temperature: float = 1.0

    @property
    def needs_reference(self) -> bool:
        return self.preset.kl_place != "none"


@dataclass(frozen=True, slots=True)
class SupervisedSettings:
    """Imitation of demonstrations: it has no choices."""


Training = Method | PreferenceSettings | SupervisedSettings | RewardModelSettings
"""What a learner group may be told to do."""


@dataclass(frozen=True, slots=True)
class UpdateSettings:
    """How a batch becomes optimiser steps: `epochs` passes, each cut into `minibatches` of about equal tokens, each
    of those into forwards of at most `micro_batch_tokens`."""

    epochs: int = 1
    minibatches: int = 1
    micro_batch_tokens: int = 1024
    seed: int = 0

    @property
    def passes(self) -> int:
        return self.epochs * self.minibatches


def needs_old(method: Method, update: UpdateSettings) -> bool:
    """Whether a step needs log-probs from before the update: not when one optimiser step sees each token once and the
    reward has no KL, for then they are the update's own, detached."""
    return update.passes > 1 or method.preset.kl_place == "reward"


@dataclass(frozen=True, slots=True)
class LearnerSettings:
    """One model's training."""

    model: ModelSettings
    optimizer: OptimizerSettings
    zero: ZeroSettings
    update: UpdateSettings
    backend: str = "deepspeed"


@dataclass(frozen=True, slots=True)
class StepInputs:
    """The columns of one step, aligned: B samples, T response tokens end to end.

    scores: [B]. reference, old, values: float32 [T] log-probs of the reference, of the policy before the update, and
    the critic's values; None where the method has no use for them. baseline: [B] the score of the greedy response to
    each row's prompt (ReMax alone). kl_coef: this step's coefficient. kto_baseline: KTO's reference point.
    row_reference: float64 [B] the reference's log-probs summed over each row, where they were stored (`reference` is
    None then). On stored rows scores hold labels or margins.
    """

    step: int
    batch: SampleBatch
    scores: ScoreBatch
    kl_coef: float = 0.0
    reference: np.ndarray | None = None
    old: np.ndarray | None = None
    values: np.ndarray | None = None
    baseline: np.ndarray | None = None
    kto_baseline: float | None = None
    row_reference: np.ndarray | None = None


def required(column: Column | None, name: str) -> Column:
    """A column that the method cannot do without. ValueError where the step came without it."""
    if column is None:
        raise ValueError(f"the method needs {name}, which this step has not: give it in the step's inputs")
    return column


@dataclass(frozen=True, slots=True)
class TokenColumn:
    """A rank's share of a column on the batch's T axis: `slots` says which tokens `values` belong to."""

    slots: np.ndarray
    values: np.ndarray


def assemble(columns: list[TokenColumn], length: int) -> np.ndarray:
    """The whole column, float32 [length]. ValueError if the shares do not cover every token exactly once."""
    whole = np.full(length, np.nan, np.float32)
    seen = np.zeros(length, np.int64)
    for column in columns:
        whole[column.slots] = column.values
        seen[column.slots] += 1
    if not (seen == 1).all():
        raise ValueError(f"{int((seen != 1).sum())} of {length} tokens were not scored exactly once; restart the step")
    return whole


@dataclass(frozen=True, slots=True)
class TokenDetails:
    """One sample with its per-token values, for people to look at. Arrays [n] over the sample's response tokens, NaN
    (advantages: 0) on those that the environment wrote."""

    row: int
    sample: Sample
    logprobs: np.ndarray
    token_kl: np.ndarray | None
    advantages: np.ndarray
    values: np.ndarray | None


@dataclass(frozen=True, slots=True)
class UpdateResult:
    """What one update did. metrics are means over the update's optimiser steps; applied is False when every one of
    them was skipped as not finite; details are the samples picked for showing."""

    metrics: Mapping[str, float]
    applied: bool
    skipped: int
    seconds: float
    details: tuple[TokenDetails, ...] = field(default=())
