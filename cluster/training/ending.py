"""How a run ends: its last policy exported, its report written, a summary shown.

In: a job whose steps are done. Out: an `Outcome`. Left out: sending the directory to where the run is kept
(cluster/driver.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cluster.run.directory import RunDirectory
from cluster.run.records.console import Console, Summary
from cluster.run.records.evaluation import difference_interval, mean_interval
from cluster.training.job import Job


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended: where its report and its exports are. policy: of the last step. best: of the evaluation that
    was best, None where none was better than the start, or the run keeps no best."""

    report: Path
    policy: Path | None
    best: Path | None
    reason: str


def finish(job: Job, directory: RunDirectory, console: Console) -> Outcome:
    """Export the last policy, write the report, show the summary."""
    from cluster.run.report import write_report

    state = job.state
    policy = None
    if job.config.checkpoint.export:
        policy = directory.policy(state.step)
        if not policy.is_dir():
            policy = job.export(state.step)
    reason = job.stop_reason or "finished"
    name = job.evaluation_metric
    before, after = state.baseline.get(name), state.scores.get(name)
    gain = difference_interval(after, before) if before and after else None
    if gain is not None:
        job.events.write("result", f"{name}: {gain.mean:+.3f}", state.step, gain=[gain.mean, gain.low, gain.high])
    job.events.write("end", reason, state.step)
    report = write_report(directory)
    console.finish(
        Summary(
            metric=name,
            before=mean_interval(before) if before else None,
            after=mean_interval(after) if after else None,
            gain=gain,
            eval_prompts=len(after or ()),
            best_step=state.best_step,
            report=report,
            model=policy,
            outcome=reason,
        )
    )
    return Outcome(report, policy, _best(job), reason)


def _best(job: Job) -> Path | None:
    """The export of the best evaluation. Step 0 is the model that the run began with, and has none."""
    kept = job.config.checkpoint
    if not (kept.export and kept.keep_best and job.state.best_step):
        return None
    return job.directory.policy(job.state.best_step)
