"""The `reward` section: data only.

In: nothing. Out: pydantic models. Left out: what needs another section to be judged (cluster/config/rules/general.py).
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from cluster.config.sections.section import Count, NonNegative, Positive, Seconds, Section


class RewardFunction(Section):
    """One reward: a built-in's name, `module:function`, or `file.py:function`."""

    function: str
    weight: float = 1.0
    args: dict[str, Any] = {}
    batched: bool = False
    timeout_s: Seconds = 10.0


class RewardModel(Section):
    """A sequence-classification reward model."""

    path: str
    weight: float = 1.0
    batch_size: Count = 16
    max_length: Count = 2048


class Judge(Section):
    """A judge that compares samples of one prompt two by two, in both orders; a sample scores its share of wins. One of
    path and function."""

    path: str | None = None
    """A language model that answers A or B."""
    function: str | None = None
    """`module:function` or `file.py:function`, called as a reward function is: how much the response is better than
    `data["other"]`, in [0, 1]."""
    template: str | None = None
    """The question a model is asked, with {prompt}, {first} and {second}; default: which answer is better, A or B."""
    weight: float = 1.0
    args: dict[str, Any] = {}
    timeout_s: Seconds = 60.0
    max_length: Count = 2048


class Safety(Section):
    """A bound on a cost: the reward is raised only as far as the mean cost stays under it (Safe RLHF)."""

    functions: dict[str, RewardFunction] = {}
    models: dict[str, RewardModel] = {}
    """The cost is the weighted sum of these, each logged under `reward/<name>`. A penalty, which is at most 0, is a
    cost under a negative weight."""
    bound: float = 0.0
    """Mean cost of a batch that is allowed."""
    multiplier: Positive = 1.0
    """The Lagrange multiplier at the start."""
    lr: Positive = 0.1
    """Of the multiplier's logarithm."""
    max_multiplier: Positive = 100.0


class Reward(Section):
    """What is rewarded: a weighted sum, each part logged under `reward/<name>`."""

    functions: dict[str, RewardFunction] = {}
    models: dict[str, RewardModel] = {}
    judges: dict[str, Judge] = {}
    safety: Safety | None = None
    missing_eos_penalty: NonNegative = 0.0
    """Subtracted from truncated samples only."""
    max_failures: int = Field(default=100, ge=0)
    """Samples without a score that the run tolerates in all."""
    memory_limit_gb: Positive | None = None
    """Address-space limit of a reward process."""
    processes: Count = 1
