"""Which exported policy of a run is meant. Left out: how one is written (learners/export.py)."""

from __future__ import annotations

from pathlib import Path

from cluster.errors import UserError
from cluster.run.directory import RunDirectory


def policy_steps(run: RunDirectory) -> list[int]:
    """Steps with an exported policy, in order."""
    found = run.policies.glob("step-*/config.json") if run.policies.is_dir() else []
    return sorted(int(path.parent.name.removeprefix("step-")) for path in found)


def latest_policy(run: RunDirectory) -> Path:
    """The newest exported policy. UserError when the run has none yet."""
    steps = policy_steps(run)
    if not steps:
        raise UserError(f"{run} has no exported policy yet; let it reach an evaluation or its end")
    return run.policy(steps[-1])
