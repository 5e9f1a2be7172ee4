"""`raylign jobs`: the jobs of a cluster, the newest first, one line each.

In: the job server's address. Out: lines, or with --json a list of objects. Left out: how far a job's run is
(`raylign status`).
"""

from __future__ import annotations

from typing import Annotated

import typer

from cluster.commands.output import Json, print_json


def jobs(
    address: Annotated[str | None, typer.Option(help="Job server; default RAYLIGN_ADDRESS, RAY_ADDRESS, here.")] = None,
    as_json: Json = False,
) -> None:
    """List the jobs of a Ray cluster.

    With --json a list of objects: id, state (PENDING, RUNNING, SUCCEEDED, FAILED, STOPPED), message, run_dir (null for
    a job of another program), started_s and ended_s (unix seconds, null before).
    """
    import time

    from cluster.commands.status import describe, job_facts
    from cluster.service.jobs import connect

    if as_json:
        print_json(lambda: [job_facts(job) for job in connect(address).list()])
        return
    for job in connect(address).list():
        typer.echo(describe(job, time.time()))
