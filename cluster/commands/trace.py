"""`raylign trace RUN`: the run's timeline as a Chrome trace.

In: a run directory or its URL. Out: RUN/trace.json, for chrome://tracing or ui.perfetto.dev. Works while the run goes
on.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def trace(
    run_dir: Annotated[str, typer.Argument(help="The run directory (or the URL it was pushed to).", metavar="RUN")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Default: RUN/trace.json.")] = None,
) -> None:
    """Write who did what from when to when, for a trace viewer."""
    from cluster.errors import UserError
    from cluster.run.directory import RunDirectory, write_atomic
    from cluster.run.records.metrics import read_events
    from cluster.run.records.timeline import chrome_trace, read_timeline

    run = RunDirectory.attach(run_dir)
    spans = read_timeline(run)
    if not spans:
        raise UserError(f"{run} has no timeline yet; let it finish a step")
    target = output or run.root / "trace.json"
    write_atomic(target, json.dumps(chrome_trace(spans, read_events(run.events_file))))
    typer.echo(f"trace: {target}, for chrome://tracing or ui.perfetto.dev")
