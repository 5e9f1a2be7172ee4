"""`raylign report RUN`: write the run's report.html and say where it is.

In: a run directory or its URL, or a pipeline's directory. Out: RUN/report.html; with --open a browser shows it. Works
while the run goes on.
"""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Annotated

import typer


def report(
    run_dir: Annotated[str, typer.Argument(help="The run directory (or the URL it was pushed to).", metavar="RUN")],
    open_browser: Annotated[bool, typer.Option("--open", help="Show the page in a browser.")] = False,
    samples: Annotated[int, typer.Option(min=0, help="Samples the page carries at most.")] = 400,
) -> None:
    """Write RUN/report.html: results, curves, where the time went, and a browser of samples, in one offline page."""
    path = _write(run_dir, samples)
    typer.echo(f"report: {path}")
    if open_browser and not webbrowser.open(path.as_uri()):
        typer.echo("no browser could be started here; open the file above", err=True)


def _write(run_dir: str, samples: int) -> Path:
    from cluster.run.directory import RunDirectory
    from cluster.run.report import write_report
    from cluster.run.report.pipeline import write_pipeline_report
    from cluster.run.stages import PipelineDirectory

    if "://" not in run_dir and PipelineDirectory(run_dir).config_file.is_file():
        return write_pipeline_report(PipelineDirectory(run_dir), samples)
    run = RunDirectory.attach(run_dir)
    path = write_report(run, samples)
    run.push(only=path)
    return path
