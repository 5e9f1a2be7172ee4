"""`raylign submit CONFIG [key.path=value ...]`: run a training as a job on a Ray cluster.

In: what `raylign train` takes, and the cluster's address. Out: the job's id. The config is checked here first. The job
gets a folder, the checkout that the recipe lies in or else the recipe's own, and this Raylign. --follow shows the log
and ends as the job ends.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def submit(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="A recipe; its folder goes with it.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="key.path=value")] = None,
    address: Annotated[str | None, typer.Option(help="Job server; default RAYLIGN_ADDRESS, RAY_ADDRESS, here.")] = None,
    run_dir: Annotated[str | None, typer.Option(help="A path that every node sees, or a URL.")] = None,
    submission_id: Annotated[str | None, typer.Option("--id", help="The job's name; default name and time.")] = None,
    working_dir: Annotated[
        Path | None, typer.Option(help="The folder that the job gets; default the recipe's, or the checkout around it.")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Continue the run in --run-dir.")] = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show the log until the job ends.")] = False,
) -> None:
    """Check a config, ship its folder and train on a Ray cluster."""
    import os

    from cluster.commands.logs import follow_to_end
    from cluster.service.jobs import connect, resolve_address, train_job

    spec = train_job(
        config,
        overrides or [],
        address=resolve_address(address, os.environ),
        run_dir=run_dir,
        submission_id=submission_id,
        working_dir=working_dir,
        resume=resume,
    )
    jobs = connect(address)
    name = jobs.submit(spec)
    typer.echo(f"{name} submitted to {jobs.address}; its run directory is {spec.run_dir}")
    if follow:
        follow_to_end(jobs, name)
    else:
        typer.echo(f"see it with: raylign status {name} · raylign logs -f {name} · raylign cancel {name}")
