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
    """A built-in's name, `module:function`, or `file.py:function`."""
    weight: float = 1.0
    """In the sum; 0: logged and not optimised."""
    args: dict[str, Any] = {}
    """Keyword arguments of every call."""
    batched: bool = False
    """Called once with lists, not once a sample; a function may say so itself (`@batched`)."""
    timeout_s: Seconds = 10.0
    """Of one call; past it the samples of the call have no score."""


class RewardModel(Section):
    """A sequence-classification reward model."""

    path: str
    """A directory, hub id or `stage:NAME`."""
    weight: float = 1.0
    """In the sum; 0: logged and not optimised."""
    max_length: Count = 2048
    """Longer conversations lose their beginning."""


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
    """In the sum; 0: logged and not optimised."""
    args: dict[str, Any] = {}
    """Keyword arguments of every call of a function."""
    timeout_s: Seconds = 60.0
    """Of one call of a function."""
    max_length: Count = 2048
    """Tokens of a model's question; a longer one is an error."""


class Safety(Section):
    """A bound on a cost: the reward is raised only as far as the mean cost stays under it (Safe RLHF)."""

    functions: dict[str, RewardFunction] = {}
    """Costs by name, written as reward functions are."""
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
    """The multiplier grows no further."""


class Reward(Section):
    """What is rewarded: a weighted sum, each part logged under `reward/<name>`."""

    functions: dict[str, RewardFunction] = {}
    """Reward functions by name."""
    models: dict[str, RewardModel] = {}
    """Reward models by name."""
    judges: dict[str, Judge] = {}
    """Judges by name."""
    safety: Safety | None = None
    missing_eos_penalty: NonNegative = 0.0
    """Subtracted from truncated samples only."""
    max_failures: int = Field(default=100, ge=0)
    """Samples without a score that the run tolerates in all."""
    memory_limit_gb: Positive | None = None
    """Address-space limit of a reward process."""
    processes: Count = 1
    """Scorers, each a process with all functions, models and judges."""
