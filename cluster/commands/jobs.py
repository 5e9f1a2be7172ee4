"""`raylign jobs`: the jobs of a cluster, the newest first, one line each."""

from __future__ import annotations

from typing import Annotated

import typer


def jobs(
    address: Annotated[str | None, typer.Option(help="Job server; default RAYLIGN_ADDRESS, RAY_ADDRESS, here.")] = None,
) -> None:
    """List the jobs of a Ray cluster."""
    import time

    from cluster.commands.status import describe
    from cluster.service.jobs import connect

    found = connect(address)
    for job in found.list():
        typer.echo(describe(job, time.time()))
