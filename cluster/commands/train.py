"""`raylign train`: check the input, open or resume the run directory, run. A file with `stages` is a pipeline.

In: a recipe or a pipeline, overrides. Out: a run directory, or one a stage. Left out: how (cluster/driver.py,
cluster/pipeline.py).
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
    from cluster.life.keeper import Keeper


def train(
    config: Annotated[Path, typer.Argument(help="A recipe, such as deploy/recipes/grpo_demo.yaml.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key.path=value ...")] = None,
    run_dir: Annotated[str | None, typer.Option(help="Default: runs/NAME.")] = None,
    resume: Annotated[bool, typer.Option(help="Continue from the last commit in the run directory.")] = False,
) -> None:
    """Tune a model."""
    from cluster.life import supervisor

    given = overrides or []
    if supervisor.is_driver():
        supervisor.follow_supervisor()
        drive(config, given, run_dir, resume)
        return
    loaded = _loaded(config, given)
    chosen = ["--run-dir", run_dir] if run_dir else []
    arguments = ["train", str(config), *given, *chosen, *(["--resume"] if resume else [])]
    namespace = f"raylign-{uuid.uuid4().hex[:12]}"
    code = supervisor.supervise(
        arguments,
        lambda: _resuming(loaded, run_dir, arguments),
        _limits(loaded),
        lambda again: _keep(loaded, namespace, again),
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
    asked = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, _interrupt) for number in asked}
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


def _loaded(config: Path, overrides: list[str]) -> Config | Pipeline | None:
    """The settings as they are now; None for input that the driver is about to refuse."""
    from cluster.config import load_run
    from cluster.errors import UserError

    try:
        return load_run(config, overrides)
    except UserError:
        return None


def _runs(loaded: Config | Pipeline) -> list[Config]:
    """The one, or a pipeline's stages."""
    from cluster.config import Pipeline

    return [stage.config for stage in loaded.stages] if isinstance(loaded, Pipeline) else [loaded]


def _keep(loaded: Config | Pipeline | None, namespace: str, again: bool) -> Keeper | None:
    """What keeps the cluster of this run. again: the cluster was there before, and may come back."""
    from cluster.config.placement import logical_cpus
    from cluster.life.keeper import Keeper, Keeping

    if loaded is None:
        return None
    runs = _runs(loaded)
    cpus = max(logical_cpus(run) for run in runs)
    return Keeper(Keeping(runs[0].ray.address, cpus, runs[0].ray.start_timeout_s if again else 0.0, namespace))


def _resuming(loaded: Config | Pipeline | None, run_dir: str | None, arguments: list[str]) -> list[str] | None:
    """Arguments that go on with the run, None while there is none to go on with. They name the settings that it saved:
    the file that it was started from may be another by then."""
    import yaml

    from cluster.config import Pipeline
    from cluster.run.directory import RunDirectory

    if loaded is None:
        return None
    where = run_dir or f"runs/{loaded.name}"
    saved = RunDirectory(where).root / ("pipeline.yaml" if isinstance(loaded, Pipeline) else "config.yaml")
    if not saved.is_file():
        return None
    given = loaded.dump() if isinstance(loaded, Pipeline) else loaded.model_dump(mode="json")
    if yaml.safe_load(saved.read_text()) == given:
        return ["train", str(saved), "--run-dir", where, "--resume"]
    # A resume that died before it could save what it was given anew.
    return [*arguments, *([] if "--resume" in arguments else ["--resume"])]


def _limits(loaded: Config | Pipeline | None) -> tuple[int, float]:
    """How often, and after how many seconds first, the driver may be started again: of stages, what the most patient
    one says."""
    from cluster.config.sections.recovery import Recovery

    every = [Recovery()] if loaded is None else [run.recovery for run in _runs(loaded)]
    most = max(every, key=lambda recovery: recovery.driver_failures)
    return most.driver_failures, most.backoff_s


def _train_run(config: Config, where: str, resume: bool, again: str) -> None:
    from cluster.driver import run
    from cluster.run.directory import RunDirectory
    from cluster.run.records.console import Console

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
