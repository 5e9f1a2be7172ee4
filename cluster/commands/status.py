"""`raylign status JOB_OR_RUN`: how far a run is.

In: a job's id, or a run directory. Out: the job's state, and for a run whose directory can be read from here its step,
the time left, and the latest metrics. Left out: curves and samples (`raylign report`).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.run.text import duration, number

if TYPE_CHECKING:
    from cluster.run.directory import RunDirectory
    from cluster.run.stages import PipelineDirectory
    from cluster.service.jobs import JobView

RECENT_STEPS = 20
"""Steps whose median time the estimate rests on: one slow evaluation must not move it."""

DRIVER_S = 3.0
"""How long `status` waits for a driver to say who works for it."""


@dataclass(frozen=True, slots=True)
class Progress:
    """`seconds_left` is None before two steps, or when nothing is left."""

    step: int
    steps: int
    seconds_left: float | None
    latest: Mapping[str, float]


def status(
    target: Annotated[str, typer.Argument(metavar="JOB_OR_RUN", help="A job's id, or a run directory.")],
    address: Annotated[str | None, typer.Option(help="Job server; default RAYLIGN_ADDRESS, RAY_ADDRESS, here.")] = None,
) -> None:
    """Show how far a job or a run is."""
    if "://" in target or Path(target).is_dir():
        lines = run_lines(target)
    else:
        from cluster.service.jobs import connect

        job = connect(address).status(target)
        lines = [describe(job, time.time())]
        if job.message:
            lines.append(f"  {job.message}")
        if job.run_dir and any(Path(job.run_dir, name).is_file() for name in ("config.yaml", "pipeline.yaml")):
            lines += run_lines(job.run_dir)
    typer.echo("\n".join(lines))


def run_lines(run_dir: str) -> list[str]:
    """The run's progress and its latest metrics; of a pipeline each stage's. UserError where no run stands."""
    from cluster.run.directory import RunDirectory, read_json_lines
    from cluster.run.records.metrics import read_metrics
    from cluster.run.stages import PipelineDirectory

    if "://" not in run_dir and (pipeline := PipelineDirectory(run_dir)).config_file.is_file():
        return _stage_lines(pipeline)
    run = RunDirectory.attach(run_dir)
    at = progress(read_metrics(run.metrics_file), int(run.read_config()["steps"]))
    ends = (row["text"] for row in read_json_lines(run.events_file) if row["kind"] == "end" and row["step"] == at.step)
    ended = next(ends, None)  # before its last step too: a resume with other bounds goes on
    left = "" if at.seconds_left is None else f", about {duration(at.seconds_left)} left"
    width = max((len(name) for name in at.latest), default=0)
    return [
        f"{run}: step {at.step} of {at.steps}{f', {ended}' if ended else left}",
        *_worker_lines(run),
        *(f"  {name:<{width}}  {number(value)}" for name, value in at.latest.items()),
    ]


def _worker_lines(run: RunDirectory) -> list[str]:
    """Who works for the run now, as its driver says; nothing once it has ended, or for a run without rollouts."""
    from cluster.errors import UserError
    from cluster.run.control import ask

    if not run.in_use():
        return []
    try:
        return [f"  workers: {ask(run, 'workers', timeout_s=DRIVER_S)}"]
    except UserError as error:  # fault boundary: what the files say is shown whether the driver answers or not
        known = "has nothing of this name" in str(error)
        return [] if known else ["  workers: not known while the driver is starting, ending or busy"]


def _stage_lines(pipeline: PipelineDirectory) -> list[str]:
    """A line a stage, with the metrics of the one that is under way."""
    done, lines = pipeline.finished(), []
    for name, run in pipeline.runs():
        if name in done:
            lines.append(f"{name}: done ({done[name].reason}), {done[name].model or 'nothing exported'}")
        else:
            begun = run_lines(str(run)) if run.config_file.is_file() else ["waits"]
            lines += [f"{name}: {begun[0]}", *begun[1:]]
    return lines


def progress(rows: Sequence[Mapping[str, Any]], steps: int) -> Progress:
    """Where the run stands; an evaluation's numbers stay shown until the next one."""
    step = max((int(row["step"]) for row in rows), default=0)
    times = [row["time/step_s"] for row in rows[-RECENT_STEPS:] if row.get("time/step_s") is not None]
    left = (steps - step) * statistics.median(times) if times and step < steps else None
    latest = {name: value for row in rows[-1:] for name, value in row.items() if name not in ("step", "time")}
    for row in reversed(rows):
        evaluated = {name: value for name, value in row.items() if name.startswith("eval/")}
        if evaluated:
            latest |= evaluated
            break
    return Progress(step, steps, left, {name: value for name, value in sorted(latest.items()) if value is not None})


def describe(job: JobView, now_s: float) -> str:
    """One line: id, state, how long it ran, where its run is."""
    spent = "" if job.started_s is None else f"  {duration((job.ended_s or now_s) - job.started_s)}"
    return f"{job.submission_id}  {job.state.lower()}{spent}  {job.run_dir or ''}".rstrip()
