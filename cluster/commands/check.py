"""`raylign check CONFIG`: everything that can be known before a worker starts, all problems at once.

In: a config, overrides, the run directory it is meant for. Out: a report or JSON (exit 0), or every problem on stderr
in the config's error format (exit 2). With --plan-only what this machine lacks is said but is no error. A pipeline is
looked at stage by stage. `problems` is the same look for `raylign train`. Left out: what only workers know (engines
that start, GPUs of other nodes).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.commands.output import Json, only_to_stderr, print_json

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
    as_json: Json = False,
) -> None:
    """Check a config without running it: model, memory, placement, data, rewards, with three rendered samples.

    With --json an object: config, ok (whether the exit code is 0), problems (each with path and text) and runs, one, or
    one a stage of a pipeline; none where the file is no config. A run: stage, name, algorithm, model, parameters,
    machine, cannot_run (problems of this machine), notes, runs_on (text, gpus, gpu_bytes), placement, memory, data
    (name, rows, longest, window, samples) and rewards (mean scores of the data's answers and of "I do not know.").
    """
    from cluster.config import ConfigError

    with only_to_stderr() if as_json else nullcontext():
        found = _look_at(config, overrides or [], run_dir, plan_only)
    if as_json:
        print_json(lambda: _facts(config, found))
    if found.wrong:
        raise ConfigError(str(config), found.wrong)
    if not as_json:
        _show(config, found)


@dataclass(frozen=True, slots=True)
class Looked:
    """runs: what is known of each stage by its name; of a recipe one, whose name is empty. wrong: what exit code 2 is
    for."""

    runs: Mapping[str, Examination]
    wrong: list[Problem]


def _look_at(config: Path, overrides: list[str], run_dir: str | None, plan_only: bool) -> Looked:
    from cluster.config import ConfigError, Pipeline, load_run
    from cluster.inspect.pipeline import examine_stages, problems_of

    try:
        loaded = load_run(config, overrides)
    except ConfigError as error:
        return Looked({}, list(error.problems))
    where = run_dir or f"runs/{loaded.name}"
    if isinstance(loaded, Pipeline):
        stages = examine_stages(loaded, where)
        return Looked(stages, problems_of(stages, plan_only))
    found = _look(loaded, where)
    return Looked({"": found}, found.wrong if plan_only else found.problems)


def _facts(config: Path, found: Looked) -> dict[str, Any]:
    from cluster.inspect.summary import problem_list, summary

    return {
        "config": str(config),
        "ok": not found.wrong,
        "problems": problem_list(found.wrong),
        "runs": [summary(run, stage or None) for stage, run in found.runs.items()],
    }


def _show(config: Path, found: Looked) -> None:
    from rich.console import Console

    from cluster.inspect.report import print_report

    console = Console(highlight=False)
    for name, run in found.runs.items():
        if name:
            console.rule(f"stage {name}", align="left")
        print_report(run, console)
        _say_what_lacks(run)
    if not any(run.cannot_run for run in found.runs.values()):
        typer.echo(f"{config}: no problems" + ("" if "" in found.runs else f" in {len(found.runs)} stages"))


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
