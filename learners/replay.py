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

from learners.methods.method import StepInputs


@dataclass(frozen=True, slots=True)
class Replayed:
    """not_finite: values of each column, of how many. gradients: parameters whose gradient was not finite, in the order
    of the backward: the first is where it began. metrics: of the update. applied: whether it was finite this time."""

    not_finite: Mapping[str, tuple[int, int]]
    gradients: tuple[str, ...]
    metrics: Mapping[str, float]
    applied: bool


def replay(learner: Any, inputs: StepInputs) -> Replayed:
    """Update `learner` (PolicyLearner, PreferenceLearner, ...) with these columns and watch."""
    columns = {
        "scores": inputs.scores.values,
        "log-probs of the engine": inputs.batch.logprobs,
        "log-probs of the reference": inputs.reference,
        "log-probs before the update": inputs.old,
        "values": inputs.values,
        "baselines": inputs.baseline,
        "stored log-probs of the reference": inputs.row_reference,
    }
    given = {name: column for name, column in columns.items() if column is not None}
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
