"""`raylign check CONFIG`: everything that can be known before a worker starts, all problems at once.

In: a config, overrides, the run directory it is meant for. Out: a report (exit 0), or every problem on stderr in the
config's error format (exit 2). With --plan-only what this machine lacks is said but is no error. A pipeline is looked
at stage by stage. `problems` is the same look for `raylign train`. Left out: what only workers know (engines that
start, GPUs of other nodes).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cluster.config import Config, Pipeline, Problem
    from cluster.inspect.examine import Examination
    from cluster.run.directory import RunDirectory


def check(
    config: Annotated[Path, typer.Argument(help="A recipe, such as deploy/recipes/grpo_demo.yaml.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key.path=value ...")] = None,
    run_dir: Annotated[str | None, typer.Option(help="Where the run would go. Default: runs/NAME.")] = None,
    plan_only: Annotated[
        bool, typer.Option("--plan-only", help="What this machine lacks (GPUs, memory, a hub model) is no error.")
    ] = False,
) -> None:
    """Check a config without running it: model, memory, placement, data, rewards, with three rendered samples."""
    from rich.console import Console

    from cluster.config import ConfigError, Pipeline, load_run
    from cluster.inspect.pipeline import examine_stages, problems_of
    from cluster.inspect.report import print_report

    loaded = load_run(config, overrides or [])
    where = run_dir or f"runs/{loaded.name}"
    if isinstance(loaded, Pipeline):
        stages = examine_stages(loaded, where)
        wrong = problems_of(stages, plan_only)
    else:
        stages = {"": _look(loaded, where)}
        wrong = stages[""].wrong if plan_only else stages[""].problems
    if wrong:
        raise ConfigError(str(config), wrong)
    console = Console(highlight=False)
    for name, found in stages.items():
        if name:
            console.rule(f"stage {name}", align="left")
        print_report(found, console)
        _say_what_lacks(found)
    if not any(found.cannot_run for found in stages.values()):
        typer.echo(f"{config}: no problems" + (f" in {len(stages)} stages" if isinstance(loaded, Pipeline) else ""))


def _look(config: Config, run_dir: str) -> Examination:
    from cluster.inspect.examine import examine
    from cluster.run.directory import RunDirectory

    directory = RunDirectory(run_dir)
    found = examine(config, directory.root)
    if (in_use := run_directory_note(directory)) is not None:
        found.notes.append(in_use)
    return found


def _say_what_lacks(found: Examination) -> None:
    from cluster.inspect.report import runs_on

    for problem in found.cannot_run:
        typer.echo(f"cannot run on this machine: {problem}")
    if found.cannot_run:
        typer.echo(f"runs on {runs_on(found)}")


def problems(config: Config | Pipeline, run_dir: str | None = None) -> list[Problem]:
    """What keeps this run or pipeline from running here; empty if nothing does."""
    from cluster.config import Pipeline
    from cluster.inspect.examine import examine
    from cluster.inspect.pipeline import examine_stages, problems_of
    from cluster.run.directory import RunDirectory

    where = run_dir or f"runs/{config.name}"
    if isinstance(config, Pipeline):
        return problems_of(examine_stages(config, where))
    return examine(config, RunDirectory(where).root).problems


def run_directory_note(directory: RunDirectory) -> str | None:
    """A sentence where the directory holds a run already, or a driver works in it; nothing is touched."""
    if not directory.config_file.is_file():
        return None
    if directory.in_use():
        return f"{directory} is in use by a running driver; stop that run or give another --run-dir"
    return f"{directory} already holds a run; train it on with --resume, or give another --run-dir"
