"""`raylign logs JOB [-f]`: what a job printed.

Out: the log. With -f it follows until the job ends, and the exit code tells how: 0 succeeded, 1 failed or stopped.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.errors import RunFailed

if TYPE_CHECKING:
    from cluster.service.jobs import Jobs


def logs(
    job: Annotated[str, typer.Argument(metavar="JOB")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
    address: Annotated[str | None, typer.Option(help="Job server; default RAYLIGN_ADDRESS, RAY_ADDRESS, here.")] = None,
) -> None:
    """Show a job's log."""
    from cluster.service.jobs import connect

    jobs = connect(address)
    if follow:
        follow_to_end(jobs, job)
    else:
        sys.stdout.write(jobs.logs(job))


def follow_to_end(jobs: Jobs, job: str) -> None:
    """Show the log as it grows. RunFailed when the job did not succeed."""

    def write(chunk: str) -> None:
        sys.stdout.write(chunk)
        sys.stdout.flush()

    end = jobs.follow(job, write)
    if end.state != "SUCCEEDED":
        raise RunFailed(
            f"{job} {end.state.lower()}: {end.message}; continue it with `raylign submit ... --resume "
            f"--run-dir {end.run_dir}`"
            if end.run_dir
            else f"{job} {end.state.lower()}: {end.message}"
        )
