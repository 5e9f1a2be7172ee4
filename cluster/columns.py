"""A step's columns as the driver holds them: references, never tokens.

In: references from workers. Out: the arguments of a learner's call. Left out: Ray itself (workers.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from actors.rollout import RolloutStats

Ref = Any
"""A Ray object reference."""


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

    def arguments(self) -> tuple[dict[str, float], list[Ref]]:
        """(layout, references) for a call whose columns stand at its top level."""
        parts = {name: getattr(self, name) for name in ("batch", "scores", "reference", "old", "values")}
        layout = {"step": self.step, "kl_coef": self.kl_coef, **{name: len(refs) for name, refs in parts.items()}}
        return layout, [ref for refs in parts.values() for ref in refs]
