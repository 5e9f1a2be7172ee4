"""The `rollout.schedule` and `rollout.autoscale` sections: data only.

In: nothing. Out: pydantic models. Left out: what they exclude (cluster/config/rules/schedule.py), the schedules' pages.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cluster.config.sections.section import Count, NonNegative, Seconds, Section


class Schedule(Section):
    """What generation and learning wait for."""

    kind: Literal["synchronous", "partial", "one_step_off", "asynchronous"] = "synchronous"
    """synchronous: each for the other. partial: too, but a step begins with more prompts than it needs and ends when
    enough are done; the others go on in the next. one_step_off: the next batch is generated while this one is learned
    from. asynchronous: generation never stops, new weights reach it between two decode steps."""
    max_staleness: Count | None = None
    """Of partial and asynchronous: weight versions between a prompt's admission and its training, at most; default
    1."""
    over_provision: float = Field(default=1.5, gt=1.0)
    """Of partial: prompts under way, as a multiple of prompts_per_step."""


class Autoscale(Section):
    """Workers come and go by themselves, so that the learner waits for as little of a step as is asked for."""

    min: Count = 1
    """The fewest workers."""
    max: Count
    """The most workers."""
    target_idle: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Share of a step that the learner may wait for samples."""
    cost: NonNegative = 0.0
    """What a worker costs where the learner group costs 1: none is added that costs more than the waiting it ends."""
    cooldown_s: Seconds = 30.0
    """Between two decisions; longer than an engine takes to start."""
