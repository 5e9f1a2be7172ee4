"""Rules of `rollout.schedule`: what cannot run ahead, and bounds that would starve or mislead.

In: a Config of a method that makes its own samples. Out: Problems. Left out: the schedules themselves.
"""

from __future__ import annotations

from collections.abc import Iterator

from cluster.config.problem import Problem
from cluster.config.resolve import max_staleness, resolve_preset
from cluster.config.schema import Config
from cluster.config.sections.schedule import Schedule


def schedule_problems(config: Config) -> Iterator[Problem]:
    yield from _autoscale(config)
    schedule, path = config.rollout.schedule, "rollout.schedule"
    if schedule.kind != "partial" and schedule.over_provision != Schedule.model_fields["over_provision"].default:
        given = f"{schedule.over_provision:g}"
        yield Problem(f"{path}.over_provision", f"acts where the schedule is partial only, got {given}; remove it")
    bound = {"synchronous": 0, "one_step_off": 1}.get(schedule.kind)
    if bound is not None and schedule.max_staleness is not None:
        yield Problem(
            f"{path}.max_staleness",
            f"is {bound} by definition where the schedule is {schedule.kind}, got {schedule.max_staleness}; remove it "
            "or choose partial or asynchronous",
        )
    if schedule.kind == "synchronous":
        return
    if config.algorithm.name == "online_dpo":
        yield Problem(f"{path}.kind", f"online_dpo is synchronous, got {schedule.kind}; remove it")
        return
    if resolve_preset(config).advantage == "remax":
        yield Problem(
            f"{path}.kind",
            f"remax needs each prompt's greedy response under the weights of its samples, got {schedule.kind}; use "
            "synchronous",
        )
    if config.deterministic:
        yield Problem(
            f"{path}.kind", f"deterministic runs depend on no timing, and {schedule.kind} does; use synchronous"
        )
    if max_staleness(config) >= config.steps:
        yield Problem(
            f"{path}.max_staleness",
            f"must be less than the run's {config.steps} steps, or nothing ever waits for new weights, got "
            f"{max_staleness(config)}",
        )


def _autoscale(config: Config) -> Iterator[Problem]:
    scale, workers, path = config.rollout.autoscale, config.rollout.workers, "rollout.autoscale"
    if scale is None:
        return
    if scale.min > scale.max:
        yield Problem(f"{path}.min", f"must be at most max ({scale.max}), got {scale.min}")
    elif not scale.min <= workers <= scale.max:
        yield Problem("rollout.workers", f"is where it begins: give {scale.min} to {scale.max}, got {workers}")
    if config.rollout.schedule.kind in ("synchronous", "partial") and scale.target_idle == 0.0:
        yield Problem(
            f"{path}.target_idle",
            "where generating and learning take turns the learner always waits: give a share above 0, got 0",
        )
    if config.deterministic:
        yield Problem(path, "deterministic runs depend on no timing, and this decides by it; remove one")
