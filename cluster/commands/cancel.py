"""`raylign cancel JOB`: stop a job. What it had committed stays in its run directory, ready for --resume."""

from __future__ import annotations

from typing import Annotated

import typer


def cancel(
    job: Annotated[str, typer.Argument(metavar="JOB")],
    address: Annotated[str | None, typer.Option(help="Job server; default RAYLIGN_ADDRESS, RAY_ADDRESS, here.")] = None,
) -> None:
    """Ask a job to stop."""
    from cluster.service.jobs import connect

    jobs = connect(address)
    if jobs.cancel(job):
        typer.echo(f"{job} is stopping; see it with `raylign status {job}`")
    else:
        typer.echo(f"{job} had ended already ({jobs.status(job).state.lower()})")
