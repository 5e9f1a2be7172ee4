"""`raylign replay RUN STEP`: a step whose loss or gradient was not finite, done again and looked at.

In: a run directory and a step that the run skipped, whose columns it saved. Out: which columns are not finite, and
which parameters' gradients. The weights are those of the newest exported policy before the step, or the run's first:
the step's own are not kept. Left out: the taking apart (learners/replay.py).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from cluster.run.directory import RunDirectory
    from learners.replay import Replayed


def replay(
    run_dir: Annotated[str, typer.Argument(metavar="RUN", help="A run directory.")],
    step: Annotated[int, typer.Argument(help="A step that was skipped as not finite.")],
) -> None:
    """Do a skipped step again and show what was not finite."""
    typer.echo("\n".join(replay_lines(run_dir, step)))


def replay_lines(run_dir: str, step: int) -> list[str]:
    """UserError where the run has not saved the step."""
    from cluster.config.loading.load import config_of
    from cluster.errors import UserError
    from cluster.run.directory import RunDirectory
    from learners.export import load_inputs

    run = RunDirectory.attach(run_dir)
    file = run.skipped_batch(step)
    if not file.is_file():
        saved = sorted(int(path.stem.rpartition("-")[2]) for path in run.logs.glob("nonfinite-step-*.npz"))
        have = f"it saved {', '.join(map(str, saved))}" if saved else "it skipped none"
        raise UserError(f"{run} has saved no columns of step {step}; {have}")
    config = config_of(run.read_config(), str(run.config_file))
    weights = _weights_before(run, step)
    found = _replayed(config, weights, load_inputs(file))
    where = f"of {weights.name}" if weights else "that the run began with"
    critic = ["  (the policy's step; the critic's is not repeated)"] if config.critic is not None else []
    return [f"step {step} of {run}, with the weights {where} (the step's own are not kept)", *critic, *_lines(found)]


def _weights_before(run: RunDirectory, step: int) -> Path | None:
    """The newest exported policy of an earlier step, none where the run exports adapters: a model is what it takes."""
    from cluster.run.checkpoints.policies import policy_steps

    earlier = [exported for exported in policy_steps(run) if exported < step]
    return run.policy(earlier[-1]) if earlier else None


def _replayed(config: Any, weights: Path | None, inputs: Any) -> Replayed:
    from actors.models.pretrained import resolve_model
    from cluster.config import resolve
    from cluster.roles.learner import LearnerRole
    from cluster.roles.learner_models import LearnerSpec
    from learners.engines.process_group import destroy_process_group
    from learners.replay import replay as take_apart

    os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))
    one_rank = config.model_copy(update={"learner": config.learner.model_copy(update={"backend": "torch"})})
    model = weights or resolve_model(config.model.path)
    spec = LearnerSpec(
        trains=resolve.training(config),
        policy=resolve.policy_settings(one_rank, str(model), config.steps),
        critic=None,
        reference_path=None,
        device="cpu",
        timeout_s=600.0,
        temperature=config.rollout.sampling.temperature,
        min_tokens=config.rollout.sampling.min_tokens,
    )
    role = LearnerRole(spec, 0, 1)
    try:
        role.build(*role.rendezvous())
        return take_apart(role.policy, inputs)
    finally:
        destroy_process_group()


def _lines(found: Replayed) -> list[str]:
    lines = [
        f"  {name}: {bad} of {count} not finite" if bad else f"  {name}: all {count} finite"
        for name, (bad, count) in found.not_finite.items()
    ]
    lines += [f"  {name}: {value:.4g}" for name, value in found.metrics.items() if name.endswith(("loss", "grad_norm"))]
    if found.gradients:
        more = f" and {len(found.gradients) - 3} more" if len(found.gradients) > 3 else ""
        lines.append(f"  gradients not finite, from the loss on: {', '.join(found.gradients[:3])}{more}")
    elif not found.applied:
        lines.append("  the loss is not finite, its gradients are")
    verdict = "is finite with these weights" if found.applied else "is not finite with these weights either"
    return [*lines, f"  the step {verdict}"]
