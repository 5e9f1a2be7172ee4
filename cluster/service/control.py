"""Changing a run while it goes on, from Python or another process: what `raylign scale` does.

In: a run directory or a job's id. Out: the driver's answer, one sentence. Left out: how requests travel
(cluster/run/control.py), what becomes of them (pool/).
"""

from __future__ import annotations

import shlex
import uuid
from pathlib import Path

from cluster.errors import UserError
from cluster.run.control import ask
from cluster.run.directory import RunDirectory
from cluster.run.stages import PipelineDirectory


def scale_run(run_dir: str, rollout: int) -> str:
    """Ask the driver of this run, or of a pipeline's running stage, for so many rollout workers. UserError with its
    reason when it refuses, or when no driver works there."""
    return ask(_running(run_dir), "scale", rollout=rollout)


def scale_job(job: str, rollout: int, address: str | None = None) -> str:
    """The same for a submitted job. Where its run directory is not on this machine, a small job asks there."""
    from cluster.service.jobs import JobSpec, connect, interpreter
    from cluster.service.shipping import checkout_root, code_beside

    jobs = connect(address)
    view = jobs.status(job)
    if view.ended:
        raise UserError(f"the job {job} has ended ({view.state.lower()}); only a running one can be scaled")
    if view.run_dir is None:
        raise UserError(f"the job {job} was not submitted by raylign: it has no run directory")
    if Path(view.run_dir).is_dir():
        return scale_run(view.run_dir, rollout)
    command = shlex.join(["-m", "cluster.cli", "scale", view.run_dir, "--rollout", str(rollout)])
    name = f"{job}-scale-{uuid.uuid4().hex[:6]}"
    said: list[str] = []
    folder = checkout_root()
    shipped = None if folder is None else str(folder)
    jobs.submit(JobSpec(name, f"exec {interpreter()} {command}", shipped, view.run_dir, code=code_beside(folder)))
    ended = jobs.follow(name, said.append)
    text = "".join(said).strip().splitlines()
    if ended.state != "SUCCEEDED":
        raise UserError(text[-1] if text else f"asking the run of {job} failed: {ended.message}")
    return text[-1]


def _running(run_dir: str) -> RunDirectory:
    """The run directory, or that of the stage which a pipeline is at."""
    pipeline = PipelineDirectory(run_dir)
    if pipeline.config_file.is_file():
        running = [run for _, run in pipeline.runs() if run.in_use()]
        if not running:
            raise UserError(f"no stage of {run_dir} is running")
        return running[0]
    return RunDirectory.attach(run_dir)
