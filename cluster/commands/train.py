"""`raylign train`: check the input, open or resume the run directory, run. A file with `stages` is a pipeline.

In: a recipe or a pipeline, overrides. Out: a run directory, or one a stage. Left out: how (driver.py, pipeline.py).
"""

from __future__ import annotations

import signal
import uuid
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cluster.config import Config, Pipeline
    from cluster.keeper import Keeper


def train(
    config: Annotated[Path, typer.Argument(help="A recipe, such as deploy/recipes/grpo_demo.yaml.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key.path=value ...")] = None,
    run_dir: Annotated[str | None, typer.Option(help="Default: runs/NAME.")] = None,
    resume: Annotated[bool, typer.Option(help="Continue from the last commit in the run directory.")] = False,
) -> None:
    """Tune a model."""
    from cluster import supervisor

    given = overrides or []
    if supervisor.is_driver():
        supervisor.follow_supervisor()
        drive(config, given, run_dir, resume)
        return
    chosen = ["--run-dir", run_dir] if run_dir else []
    arguments = ["train", str(config), *given, *chosen, *(["--resume"] if resume else [])]
    namespace = f"raylign-{uuid.uuid4().hex[:12]}"
    code = supervisor.supervise(
        arguments,
        lambda: _begun(config, given, run_dir),
        _limits,
        lambda again: _keep(config, given, namespace, again),
    )
    raise typer.Exit(code)


def drive(config: Path, overrides: list[str], run_dir: str | None = None, resume: bool = False) -> None:
    """Check the input and run, in this process."""
    from cluster.commands.check import problems
    from cluster.config import ConfigError, Pipeline, load_run

    loaded = load_run(config, overrides)
    where = run_dir or f"runs/{loaded.name}"
    if wrong := problems(loaded, where):
        raise ConfigError(str(config), wrong)
    again = " ".join(["raylign train", str(config), *overrides, "--run-dir", where, "--resume"])
    before = {number: signal.signal(number, _interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        if isinstance(loaded, Pipeline):
            _train_pipeline(loaded, where, resume, again)
        else:
            _train_run(loaded, where, resume, again)
    except KeyboardInterrupt:
        typer.echo(f"interrupted; resume with: {again}", err=True)
        raise typer.Exit(130) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """A cancelled job gets SIGTERM: it ends as Ctrl-C does, workers reaped and the last commit standing. What comes
    after the first would cut that short, and could leave a lock held that the end waits for."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, _nothing_more)
    raise KeyboardInterrupt


def _nothing_more(number: int, frame: FrameType | None) -> None:
    """The run is ending."""


def _keep(config: Path, overrides: list[str], namespace: str, again: bool) -> Keeper | None:
    """What keeps the cluster of this run; nothing for input that the driver is about to refuse. again: the cluster was
    there before, and may come back."""
    from cluster.config import Pipeline, load_run
    from cluster.errors import UserError
    from cluster.keeper import Keeper, Keeping
    from cluster.placement import logical_cpus

    try:
        loaded = load_run(config, overrides)
    except UserError:
        return None
    stages = [stage.config for stage in loaded.stages] if isinstance(loaded, Pipeline) else [loaded]
    cpus = max(logical_cpus(stage) for stage in stages)
    return Keeper(Keeping(stages[0].ray.address, cpus, stages[0].ray.start_timeout_s if again else 0.0, namespace))


def _begun(config: Path, overrides: list[str], run_dir: str | None) -> Path | None:
    """The run directory, if there is something in it to resume."""
    from cluster.config import load_run
    from cluster.run.directory import RunDirectory

    where = RunDirectory(run_dir or f"runs/{load_run(config, overrides).name}").root
    return where if any((where / name).is_file() for name in ("config.yaml", "pipeline.yaml")) else None


def _limits(run_dir: Path) -> tuple[int, float]:
    """How often, and after how many seconds first, the run's driver may be started again."""
    import yaml

    from cluster.config.recovery import Recovery

    file = run_dir / "config.yaml"
    saved = yaml.safe_load(file.read_text()) if file.is_file() else {}
    recovery = Recovery(**saved.get("recovery", {}))
    return recovery.driver_failures, recovery.backoff_s


def _train_run(config: Config, where: str, resume: bool, again: str) -> None:
    from cluster.driver import run
    from cluster.run.console import Console
    from cluster.run.directory import RunDirectory

    directory = RunDirectory.attach(where) if resume else RunDirectory.create(where)
    run(config, directory, resume=resume, console=Console(), again=again)


def _train_pipeline(pipeline: Pipeline, where: str, resume: bool, again: str) -> None:
    from cluster.pipeline import run_pipeline
    from cluster.run.stages import PipelineDirectory

    directory = PipelineDirectory.attach(where) if resume else PipelineDirectory.create(where)
    if resume:
        directory.refuse_other(pipeline)
    report = run_pipeline(pipeline, directory, again=again, say=typer.echo)
    typer.echo(f"pipeline {pipeline.name} is done; its report: {report}")
