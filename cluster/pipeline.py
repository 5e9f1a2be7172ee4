"""A pipeline from its first unfinished stage to its end: each stage is a run of its own, in this process, one by one.

In: a checked pipeline and its directory. Out: a run directory a stage, the record of what each exported, one report.
A stage hands on its best export by evaluation, else its last. Left out: what a run is (driver.py), checks of the input.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cluster.config import Config, Pipeline, Stage
from cluster.config.loading.pipeline import REFERENCE, with_models
from cluster.driver import run
from cluster.errors import RunFailed, StepLost, UserError
from cluster.run.directory import RunDirectory
from cluster.run.records.console import Console
from cluster.run.report.pipeline import write_pipeline_report
from cluster.run.stages import Finished, PipelineDirectory
from cluster.training.ending import Outcome

RunStage = Callable[[Config, RunDirectory, bool], Outcome]
"""(config, directory, resume) -> how the run ended."""


def run_pipeline(
    pipeline: Pipeline,
    directory: PipelineDirectory,
    *,
    again: str,
    say: Callable[[str], None],
    run_stage: RunStage | None = None,
) -> Path:
    """Run the stages that are not done; the report's path. again: the command that resumes. Stages that are done stay
    as they are; one that began goes on from its last commit."""
    train = run_stage or (
        lambda config, where, resume: run(config, where, resume=resume, console=Console(), again=again)
    )
    with directory.lock():
        directory.write(pipeline)
        for number, stage in enumerate(pipeline.stages, 1):
            head = f"stage {number} of {len(pipeline.stages)}, {stage.name}"
            done = directory.finished()
            if stage.name in done:
                say(f"{head}: done before, {done[stage.name].model or 'nothing exported'}")
                continue
            where = directory.stage(number, stage.name)
            say(f"{head}: {stage.config.algorithm.name} of {stage.config.model.path} in {where}")
            outcome = _train(stage, where, resolved(stage, directory), train, again)
            directory.record(_finished(stage.name, where, outcome, directory.root))
        return write_pipeline_report(directory)


def resolved(stage: Stage, directory: PipelineDirectory) -> Config:
    """The stage's config with the directories of the models that earlier stages exported."""
    done = directory.finished()

    def find(path: str) -> str:
        if not path.startswith(REFERENCE):
            return path
        return str(directory.root / str(done[path.removeprefix(REFERENCE)].model))

    return with_models(stage.config, find)


def _train(stage: Stage, where: RunDirectory, config: Config, train: RunStage, again: str) -> Outcome:
    began = where.config_file.is_file()
    try:
        return train(config, RunDirectory.attach(where.root) if began else RunDirectory.create(where.root), began)
    except StepLost as error:  # who runs this process starts it again
        raise StepLost(f"stage {stage.name}: {error}") from error
    except RunFailed as error:
        raise RunFailed(f"stage {stage.name}: {error}") from error
    except UserError as error:
        raise UserError(f"stage {stage.name}: {error}\nonce that is mended: {again}") from error
    except Exception as error:
        error.add_note(f"stage {stage.name} of the pipeline failed; resume with: {again}")
        raise


def _finished(name: str, where: RunDirectory, outcome: Outcome, root: Path) -> Finished:
    """A stage's output: later stages start from the model that did best on held-out rows, not from one that has
    overfitted since. Where no step was better than the start, the last is what was trained."""
    model = outcome.best or outcome.policy
    if model is None:
        return Finished(name, where.root.name, None, "nothing exported", outcome.reason)
    why = "best evaluation" if outcome.best is not None else "last step"
    return Finished(name, where.root.name, model.relative_to(root).as_posix(), why, outcome.reason)
