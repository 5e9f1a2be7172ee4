"""A step's columns as the driver holds them: references, never tokens.

In: references from workers. Out: the arguments of a learner's call. Left out: Ray itself (cluster/workers).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from actors.rollouts.generation import RolloutStats

Ref = Any
"""A Ray object reference."""

COLUMNS = ("batch", "scores", "reference", "old", "values", "baseline")
"""The order in which a learner's call takes them."""


@dataclass(frozen=True, slots=True)
class Samples:
    """A step's samples, by reference, one chunk a worker. prompts: references of what the chunks were made from;
    groups: the chunks' groups in row order, `samples_per_prompt` rows each; recorded: a few of the samples."""

    chunks: tuple[Ref, ...]
    prompts: tuple[Ref, ...]
    groups: tuple[int, ...]
    samples_per_prompt: int
    recorded: Ref
    stats: tuple[RolloutStats, ...]

    @classmethod
    def merge(cls, parts: Sequence[Samples]) -> Samples:
        """The parts end to end; recorded samples are the last part's, of the newest weights."""
        return cls(
            chunks=tuple(chunk for part in parts for chunk in part.chunks),
            prompts=tuple(ref for part in parts for ref in part.prompts),
            groups=tuple(group for part in parts for group in part.groups),
            samples_per_prompt=parts[0].samples_per_prompt,
            recorded=parts[-1].recorded,
            stats=tuple(stats for part in parts for stats in part.stats),
        )


@dataclass(frozen=True, slots=True)
class StepColumns:
    """What the learners take, by reference: see roles.step_inputs."""

    step: int
    kl_coef: float
    batch: tuple[Ref, ...]
    scores: tuple[Ref, ...] = ()
    reference: tuple[Ref, ...] = ()
    old: tuple[Ref, ...] = ()
    values: tuple[Ref, ...] = ()
    baseline: tuple[Ref, ...] = ()
    kto_baseline: float | None = None
    row_reference: np.ndarray | None = None
    """Stored log-probs of the reference, one number a row."""

    def arguments(self) -> tuple[dict[str, Any], list[Ref]]:
        """(layout, references) for a call whose columns stand at its top level."""
        parts = {name: getattr(self, name) for name in COLUMNS}
        numbers = {name: getattr(self, name) for name in ("step", "kl_coef", "kto_baseline", "row_reference")}
        layout = numbers | {name: len(refs) for name, refs in parts.items()}
        return layout, [ref for refs in parts.values() for ref in refs]
