"""`raylign train`: check the input, open or resume the run directory, run."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer


def train(
    config: Annotated[Path, typer.Argument(help="A recipe, such as deploy/recipes/grpo_demo.yaml.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key.path=value ...")] = None,
    run_dir: Annotated[str | None, typer.Option(help="Default: runs/NAME.")] = None,
    resume: Annotated[bool, typer.Option(help="Continue from the last commit in the run directory.")] = False,
) -> None:
    """Tune a model."""
    from cluster.commands.check import problems
    from cluster.config import ConfigError, load_config
    from cluster.driver import run
    from cluster.run.console import Console
    from cluster.run.directory import RunDirectory

    loaded = load_config(config, overrides or [])
    where = run_dir or f"runs/{loaded.name}"
    if wrong := problems(loaded, where):
        raise ConfigError(str(config), wrong)
    directory = RunDirectory.attach(where) if resume else RunDirectory.create(where)
    # A cancelled job gets SIGTERM: it ends as Ctrl-C does, workers reaped and the last commit standing.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        run(loaded, directory, resume=resume, console=Console())
    except KeyboardInterrupt:
        typer.echo(
            f"interrupted; resume with: raylign train {config} {' '.join(overrides or [])} --run-dir {where} --resume",
            err=True,
        )
        raise typer.Exit(130) from None
