"""`raylign scale JOB_OR_RUN --rollout N`: more or fewer rollout workers for a run that is under way.

In: a run directory, or a job's id. Out: what the driver does about it, at once; `raylign status` shows it happen. A run
on another machine is asked by a small job there. Left out: joining and leaving (cluster/pool).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def scale(
    target: Annotated[str, typer.Argument(metavar="JOB_OR_RUN", help="A job's id, or a run directory.")],
    rollout: Annotated[int, typer.Option(help="Rollout workers there should be.")],
    address: Annotated[str | None, typer.Option(help="Job server; default RAYLIGN_ADDRESS, RAY_ADDRESS, here.")] = None,
) -> None:
    """Change the number of rollout workers while a run goes on."""
    from cluster.service.control import scale_job, scale_run

    said = scale_run(target, rollout) if Path(target).is_dir() else scale_job(target, rollout, address)
    typer.echo(said)
