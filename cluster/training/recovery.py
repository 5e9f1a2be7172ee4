"""What the driver does when the learner is lost: everything goes back to the last commit, but for the rollout workers.

In: a running job and what ended its learner. Out: the job with a new learner, on the state of the last checkpoint that
verifies (without one: at step 0), its records cut back to it; the steps since are repeated. Rollout workers and scorers
stay as they are; what was under way is generated again. Left out: how a kind of job is put back (`Job.rebuild`), lost
rollout workers (cluster/pool), a lost driver (the run is resumed).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from cluster.errors import RunFailed, StepLost
from cluster.pool.members.recovery import FailureBudget
from cluster.run.checkpoints import checkpoint
from cluster.run.checkpoints.state import DriverState
from cluster.run.directory import RunDirectory
from cluster.run.records.metrics import MetricsWriter
from cluster.training.job import Job


def last_commit(directory: RunDirectory) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that verifies, and what is wrong with newer ones; the run's records are cut back to it (to
    nothing when there is none)."""
    found, damaged = checkpoint.latest_whole(directory.checkpoints)
    checkpoint.set_aside_after(directory.checkpoints, found)
    for folder in (directory.checkpoints, directory.policies):
        checkpoint.clear_stages(folder)
    directory.truncate_after(step_of(found))
    return found, damaged


def step_of(commit: Path | None) -> int:
    return -1 if commit is None else DriverState.load(commit).step


def train(job: Job, steps: Callable[[], None], open_metrics: Callable[[Path | None], MetricsWriter]) -> None:
    """Run the steps to their end, with a new learner as often as recovery.learner_failures allows."""
    limits = job.config.recovery
    budget = FailureBudget(limits.learner_failures, limits.backoff_s)
    lost = False
    while True:
        try:
            if lost:
                _go_back(job, open_metrics)
            steps()
            return
        except StepLost as error:
            lost, wait_s = True, budget.failed(time.monotonic())
            if wait_s is None:
                raise RunFailed(
                    f"a step was lost {budget.spent} times, more than recovery.learner_failures "
                    f"({limits.learner_failures}); the last: {error}"
                ) from error
            job.events.write("lost", f"the step is lost: {error}", reached=job.state.step)
            time.sleep(wait_s)


def _go_back(job: Job, open_metrics: Callable[[Path | None], MetricsWriter]) -> None:
    began = time.monotonic()
    job.doing("going back to the last commit")
    job.commits.drop()
    with job.events.closed():
        commit, damaged = last_commit(job.directory)
    for problem in damaged:
        job.events.write("damaged", problem)
    job.run.metrics.close()
    job.cut_back(open_metrics(commit))
    to = max(0, step_of(commit))
    job.console.event(f"the step is lost; building the learner again from step {to}, what came after is repeated")
    job.rebuild(commit)
    job.begin_row()
    took = time.monotonic() - began
    job.events.write("recovered", f"the run goes on from step {to} after {took:.1f} s", seconds=round(took, 2))
