"""A step that was skipped, taken apart: which of its columns, losses and gradients are not finite.

In: a learner and a step's columns. Out: counts of values that are not finite, and the parameters whose gradients are
not. The optimiser steps as it did in the run; the learner is thrown away. Left out: reading and printing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from actors.response_mask import response_mask
from learners.methods.method import StepInputs


@dataclass(frozen=True, slots=True)
class Replayed:
    """not_finite: values of each column (of tokens: the policy's own), of how many. gradients: parameters whose
    gradient was not finite, in the order of the backward: the first is where it began. metrics: of the update. applied:
    whether it was finite this time."""

    not_finite: Mapping[str, tuple[int, int]]
    gradients: tuple[str, ...]
    metrics: Mapping[str, float]
    applied: bool


def replay(learner: Any, inputs: StepInputs) -> Replayed:
    """Update `learner` (PolicyLearner, PreferenceLearner, ...) with these columns and watch."""
    by_token = {
        "log-probs of the engine": inputs.batch.logprobs,
        "log-probs of the reference": inputs.reference,
        "log-probs before the update": inputs.old,
        "values": inputs.values,
    }
    by_row = {
        "scores": inputs.scores.values,
        "baselines": inputs.baseline,
        "stored log-probs of the reference": inputs.row_reference,
    }
    mask = response_mask(inputs.batch)
    given = {name: column[mask] for name, column in by_token.items() if column is not None}
    given |= {name: column for name, column in by_row.items() if column is not None}
    bad: dict[str, None] = {}
    handles = [
        parameter.register_hook(_watch(name, bad))
        for name, parameter in learner._engine.module.named_parameters()
        if parameter.requires_grad
    ]
    try:
        result = learner.update(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return Replayed(
        {name: (int((~np.isfinite(column)).sum()), int(column.size)) for name, column in given.items()},
        tuple(bad),
        result.metrics,
        result.applied,
    )


def _watch(name: str, bad: dict[str, None]) -> Any:
    def look(gradient: torch.Tensor) -> None:
        if not torch.isfinite(gradient).all():
            bad.setdefault(name)

    return look
