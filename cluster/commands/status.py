"""`raylign status JOB_OR_RUN`: how far a run is.

In: a job's id, or a run directory. Out: lines, or JSON: the job's state, and for a run whose directory can be read from
here its step, the time left, and the latest metrics. Left out: curves and samples (`raylign report`).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.commands.output import Json, print_json
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
    as_json: Json = False,
) -> None:
    """Show how far a job or a run is.

    With --json an object: job (as in `raylign jobs --json`; null for a run directory) and run (null where none can be
    read from here). A run: run_dir, step, steps, seconds_left (null before two steps and at the end), ended (how:
    finished, or why it stopped early; null before), running (whether a driver works for it), workers (a sentence, null
    without), metrics (the latest, by name). A pipeline: run_dir and stages, each with name, state (waiting, begun,
    done), reason (how it ended), model (what it exported, below run_dir) and run, which is null while it waits.
    """
    if as_json:
        print_json(lambda: _facts(target, address))
    else:
        typer.echo("\n".join(_lines(target, address)))


def _facts(target: str, address: str | None) -> dict[str, Any]:
    if _is_run(target):
        return {"job": None, "run": run_facts(target)}
    job = _job(target, address)
    return {"job": job_facts(job), "run": run_facts(job.run_dir) if job.run_dir and _is_begun(job.run_dir) else None}


def _lines(target: str, address: str | None) -> list[str]:
    if _is_run(target):
        return run_lines(target)
    job = _job(target, address)
    lines = [describe(job, time.time()), *([f"  {job.message}"] if job.message else [])]
    return [*lines, *(run_lines(job.run_dir) if job.run_dir and _is_begun(job.run_dir) else [])]


def _is_run(target: str) -> bool:
    return "://" in target or Path(target).is_dir()


def _is_begun(run_dir: str) -> bool:
    return any(Path(run_dir, name).is_file() for name in ("config.yaml", "pipeline.yaml"))


def _job(target: str, address: str | None) -> JobView:
    from cluster.service.jobs import connect

    return connect(address).status(target)


def run_lines(run_dir: str) -> list[str]:
    """The run's progress and its latest metrics; of a pipeline each stage's. UserError where no run stands."""
    found = run_facts(run_dir)
    return _run_lines(found) if "stages" not in found else [line for s in found["stages"] for line in _stage_lines(s)]


def _run_lines(found: Mapping[str, Any]) -> list[str]:
    left = "" if found["seconds_left"] is None else f", about {duration(found['seconds_left'])} left"
    ended = "" if found["ended"] is None else f", {found['ended']}"
    width = max((len(name) for name in found["metrics"]), default=0)
    return [
        f"{found['run_dir']}: step {found['step']} of {found['steps']}{ended or left}",
        *([f"  workers: {found['workers']}"] if found["workers"] else []),
        *(f"  {name:<{width}}  {number(value)}" for name, value in found["metrics"].items()),
    ]


def _stage_lines(stage: Mapping[str, Any]) -> list[str]:
    """A line a stage, with the metrics of the one that is under way."""
    if stage["state"] == "done":
        return [f"{stage['name']}: done ({stage['reason']}), {stage['model'] or 'nothing exported'}"]
    begun = ["waits"] if stage["run"] is None else _run_lines(stage["run"])
    return [f"{stage['name']}: {begun[0]}", *begun[1:]]


def run_facts(run_dir: str) -> dict[str, Any]:
    """What --json prints of a run or a pipeline. UserError where none stands."""
    from cluster.run.directory import RunDirectory, read_json_lines
    from cluster.run.records.metrics import read_metrics
    from cluster.run.stages import PipelineDirectory

    if "://" not in run_dir and (pipeline := PipelineDirectory(run_dir)).config_file.is_file():
        return {"run_dir": str(pipeline), "stages": _stage_facts(pipeline)}
    run = RunDirectory.attach(run_dir)
    at = progress(read_metrics(run.metrics_file), int(run.read_config()["steps"]))
    ends = (row["text"] for row in read_json_lines(run.events_file) if row["kind"] == "end" and row["step"] == at.step)
    running = run.in_use()
    return {
        "run_dir": str(run),
        "step": at.step,
        "steps": at.steps,
        "seconds_left": at.seconds_left,
        "ended": next(ends, None),  # before its last step too: a resume with other bounds goes on
        "running": running,
        "workers": _workers(run) if running else None,
        "metrics": dict(at.latest),
    }


def _workers(run: RunDirectory) -> str | None:
    """Who works for the run now, as its driver says; None for a run without rollouts."""
    from cluster.errors import UserError
    from cluster.run.control import ask

    try:
        return ask(run, "workers", timeout_s=DRIVER_S)
    except UserError as error:  # fault boundary: what the files say is shown whether the driver answers or not
        known = "has nothing of this name" in str(error)
        return None if known else "not known while the driver is starting, ending or busy"


def _stage_facts(pipeline: PipelineDirectory) -> list[dict[str, Any]]:
    done, stages = pipeline.finished(), []
    for name, run in pipeline.runs():
        ended, begun = done.get(name), run.config_file.is_file()
        state = "done" if ended else "begun" if begun else "waiting"
        about = {"reason": ended and ended.reason, "model": ended and ended.model}
        stages.append({"name": name, "state": state, **about, "run": run_facts(str(run)) if begun else None})
    return stages


def job_facts(job: JobView) -> dict[str, Any]:
    """What --json prints of a job."""
    facts = asdict(job)
    return {"id": facts.pop("submission_id"), **facts}


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
