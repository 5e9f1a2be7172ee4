"""What a resume may change of a run's config.

In: the saved config and the given one, as plain data. Out: the dotted keys that differ and may not. Left out: reading
them and refusing (cluster/driver.py, cluster/run/stages.py).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

FREE_IN_A_STAGE = (
    "steps",
    "evaluation.every_steps",
    "evaluation.patience",
    "evaluation.kl_bound",
    "checkpoint",
    "ray",
    "tracking",
    "weights",
    "recovery",
    "learner.backend",
    "learner.ranks",
    "learner.gpus_per_rank",
    "learner.zero",
    "learner.threads",
    "learner.update_timeout_s",
    "learner.max_nonfinite_steps",
    "rollout.workers",
    "rollout.tensor_parallel",
    "rollout.gpu_memory_utilization",
    "rollout.sleep_level",
    "reward.max_failures",
    "critic.zero",
)
"""Dotted keys, each with all below it, that a resume may change of a run or of a pipeline's unfinished stage: when it
ends, what is kept and told, where it runs, how it is cut and how much may fail. The rest decides what the numbers are,
or, as the held-out prompts and how they are answered, what they are compared with."""
FREE_TO_CHANGE = (*FREE_IN_A_STAGE, "name")
"""Of a run of its own, which may be called otherwise too."""
FREE_WHEN_DONE = ("ray", "tracking", "weights", "recovery")
"""Of a finished stage only where it ran: it is not run again, so another setting would be ignored."""


def changed_keys(saved: Mapping[str, Any], given: Mapping[str, Any], free: Collection[str]) -> list[str]:
    """Dotted keys whose values differ, without those in `free` and below them. A key that one of the two lacks is as
    good as one that is null there."""
    return list(_changed(saved, given, free, ""))


def _changed(saved: Mapping[str, Any], given: Mapping[str, Any], free: Collection[str], above: str) -> Iterator[str]:
    for key in dict.fromkeys([*given, *saved]):
        name, before, after = above + key, saved.get(key), given.get(key)
        if name in free or before == after:
            continue
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from _changed(before, after, free, f"{name}.")
        else:
            yield name
