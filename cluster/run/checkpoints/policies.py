"""Which exported policy of a run, or of a pipeline, is meant, and which are kept. Left out: how one is written
(learners/export.py)."""

from __future__ import annotations

import json
from pathlib import Path

from cluster.errors import UserError
from cluster.run.checkpoints import checkpoint
from cluster.run.checkpoints.state import DriverState
from cluster.run.directory import RunDirectory
from cluster.run.stages import PipelineDirectory


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


def prune_policies(run: RunDirectory) -> None:
    """Remove exports up to the last commit that were the best once: no checkpoint that is kept knows them as its best
    any more, and nothing that goes back to one will ask for them. All stay while a checkpoint cannot be read."""
    commits = checkpoint.steps(run.checkpoints)
    try:
        best = {DriverState.load(run.checkpoint(step)).best_step for step in commits}
    except (OSError, ValueError, TypeError):  # fault boundary: it is damaged, which is told when a resume verifies it
        return
    for step in policy_steps(run):
        if step < commits[-1] and step not in best:
            checkpoint.remove(run.policy(step))


def last_stage_policy(pipeline: PipelineDirectory) -> Path:
    """What the last finished stage that trains a policy exported. UserError when there is none yet."""
    exported = (pipeline.root / done.model for done in reversed(pipeline.finished().values()) if done.model)
    policy = next((path for path in exported if not _classifies(path)), None)
    if policy is None:
        raise UserError(f"{pipeline} has no exported policy yet; let a stage that trains one finish")
    return policy


def exported_policy(path: str | Path) -> Path | None:
    """The policy that a run's or a pipeline's directory means; None where it is neither."""
    if "://" in str(path):
        return None
    if (pipeline := PipelineDirectory(path)).config_file.is_file():
        return last_stage_policy(pipeline)
    run = RunDirectory(path)
    return latest_policy(run) if run.config_file.is_file() else None


def _classifies(model: Path) -> bool:
    names = json.loads((model / "config.json").read_text()).get("architectures") or ()
    return any("SequenceClassification" in name for name in names)
