"""An Examination as plain data: what `raylign check --json` prints of a run.

In: an Examination, Problems. Out: mappings of text, numbers and lists; their keys are what `raylign check --help`
names. Left out: printing, and text for people (report.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from cluster.config import Problem
from cluster.inspect.data import DataFindings
from cluster.inspect.examine import Examination
from cluster.inspect.report import runs_on


def problem_list(problems: Iterable[Problem]) -> list[dict[str, str]]:
    """path: a key of the recipe, a row's place, or empty; text: the rule, the value and the fix."""
    return [{"path": problem.path, "text": problem.message} for problem in problems]


def summary(found: Examination, stage: str | None = None) -> dict[str, Any]:
    """What is known of a run, or of a pipeline's stage. null: it could not be found out."""
    config, machine = found.config, found.machine
    return {
        "stage": stage,
        "name": config.name,
        "algorithm": config.algorithm.name,
        "model": config.model.path,
        "parameters": None if found.facts is None else found.facts.parameters,
        "machine": {"cpus": machine.cpus, "memory_bytes": machine.memory, "gpu_bytes": list(machine.gpus)},
        "cannot_run": problem_list(found.cannot_run),
        "notes": list(found.notes),
        "runs_on": {"text": runs_on(found), "gpus": found.gpus_needed, "gpu_bytes": found.gpu_bytes},
        "placement": _placement(found),
        "memory": _memory(found),
        "data": None if found.data is None else _data(found.data),
        "rewards": None
        if found.rewards is None
        else {"answered": dict(found.rewards.answered), "ignorant": dict(found.rewards.ignorant)},
    }


def _placement(found: Examination) -> dict[str, Any] | None:
    if found.placement is None:
        return None
    roles = [
        {"role": role.role, "processes": role.count, "gpus": role.gpus, "threads": role.threads}
        for role in found.placement.roles
    ]
    return {"device": found.placement.device, "roles": roles}


def _memory(found: Examination) -> dict[str, Any] | None:
    """Bytes; those of a role are one process's."""
    if (memory := found.memory) is None:
        return None
    roles = [
        {"role": role.role, "processes": role.count, "bytes": role.bytes, "parts": dict(role.parts)}
        for role in memory.roles
    ]
    return {"total_bytes": memory.total, "object_store_bytes": memory.shared, "roles": roles}


def _data(data: DataFindings) -> dict[str, Any]:
    """rows: counts by what became of them (`to_train_on`, `held_out`, ...). longest, window: tokens."""
    return {
        "name": data.name,
        "rows": {re.sub(r"\W+", "_", name): count for name, count in data.rows.items()},
        "longest": data.longest,
        "window": data.window,
        "samples": [{"title": each.title, "text": each.text, "tokens": each.tokens} for each in data.samples],
    }
