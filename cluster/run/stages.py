"""The directory of a pipeline: a run directory for each stage, and a record of the stages that are done.

In: a local path. Out: DIR/pipeline.yaml (resolved), DIR/pipeline.json (finished stages and what each exported, replaced
whole after every stage), DIR/01-NAME, ... Left out: what a run directory holds (directory.py), running the stages.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from cluster.config.loading.pipeline import Pipeline
from cluster.config.loading.retired import without_retired
from cluster.config.rules.resuming import FREE_IN_A_STAGE, FREE_WHEN_DONE, changed_keys
from cluster.errors import UserError
from cluster.run.directory import RunDirectory, write_atomic


@dataclass(frozen=True, slots=True)
class Finished:
    """A stage that is done. directory, model: below the pipeline's, so that it may be moved whole; model is None where
    the stage exports nothing. why: which export that is. reason: how the stage ended."""

    stage: str
    directory: str
    model: str | None
    why: str
    reason: str


class PipelineDirectory:
    """Names of a pipeline's files under `root`. Making one touches nothing; `create` and `attach` check and prepare."""

    def __init__(self, path: str | Path) -> None:
        if "://" in str(path):
            raise UserError(f"{path}: a pipeline's directory must be a local or mounted path; give another --run-dir")
        self.root = Path(path).expanduser().absolute()
        self.config_file = self.root / "pipeline.yaml"
        self.record_file = self.root / "pipeline.json"
        self.report_file = self.root / "report.html"

    def __str__(self) -> str:
        return str(self.root)

    @classmethod
    def create(cls, path: str | Path) -> PipelineDirectory:
        """An empty directory for a new pipeline. UserError where a run or a pipeline stands."""
        made = cls(path)
        if made.root.exists() and not made.root.is_dir():
            raise UserError(f"{made} is a file; give a directory with --run-dir")
        if made.config_file.exists():
            raise UserError(f"{made} already holds a pipeline; add --resume to continue it, or give another --run-dir")
        if RunDirectory(made.root).config_file.exists():
            raise UserError(f"{made} already holds a run of its own; give another --run-dir")
        try:
            made.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{made} cannot be made ({error.strerror}); give a writable --run-dir") from error
        return made

    @classmethod
    def attach(cls, path: str | Path) -> PipelineDirectory:
        """The pipeline that stands at `path`. UserError if there is none."""
        found = cls(path)
        if not found.config_file.is_file():
            raise UserError(f"{found} holds no pipeline (no pipeline.yaml in it); start it without --resume")
        return found

    def lock(self) -> AbstractContextManager[None]:
        """Held while stages run. UserError naming the holder if another process has it."""
        return RunDirectory(self.root).lock()

    def stage(self, number: int, name: str) -> RunDirectory:
        """The run of a stage; the first has number 1."""
        return RunDirectory(self.root / f"{number:02d}-{name}")

    def runs(self) -> Iterator[tuple[str, RunDirectory]]:
        """(name, run) of every stage, in order, begun or not."""
        for number, stage in enumerate(self.read()["stages"], 1):
            yield stage["name"], self.stage(number, stage["name"])

    def write(self, pipeline: Pipeline) -> None:
        write_atomic(self.config_file, yaml.safe_dump(pipeline.dump(), sort_keys=False, allow_unicode=True))

    def read(self) -> dict[str, Any]:
        """The saved pipeline as plain data."""
        saved = yaml.safe_load(self.config_file.read_text())
        return {**saved, "stages": [without_retired(stage) for stage in saved["stages"]]}

    def finished(self) -> dict[str, Finished]:
        """The stages that are done, by name. UserError when what one exported is gone."""
        if not self.record_file.is_file():
            return {}
        try:
            rows = [Finished(**row) for row in json.loads(self.record_file.read_text())["finished"]]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.record_file} is not as it was written ({error}); restore it") from error
        for row in rows:
            if row.model is not None and not (self.root / row.model / "config.json").is_file():
                raise UserError(
                    f"the stage {row.stage} is done, but its model {self.root / row.model} is gone; restore it or "
                    "start a new run directory"
                )
        return {row.stage: row for row in rows}

    def record(self, done: Finished) -> None:
        """Add a finished stage. Written after its run's last commit: a crash in between runs no step again."""
        rows = [*self.finished().values(), done]
        write_atomic(self.record_file, json.dumps({"finished": [asdict(row) for row in rows]}, indent=1) + "\n")

    def refuse_other(self, pipeline: Pipeline) -> None:
        """UserError unless `pipeline` is the one that was started here, up to what a resume may change."""
        saved, given = self.read(), pipeline.dump()
        names, now = ([stage["name"] for stage in tree["stages"]] for tree in (saved, given))
        done = self.finished()
        changed = [] if names == now else ["the list of stages"]
        changed += [] if saved["name"] == given["name"] else ["name"]
        for before, after in zip(saved["stages"], given["stages"], strict=False):
            free = FREE_WHEN_DONE if before["name"] in done else FREE_IN_A_STAGE
            changed += [f"{before['name']}: {key}" for key in changed_keys(before, after, free) if names == now]
        if changed:
            raise UserError(
                f"{self} was started with another pipeline ({', '.join(changed)}); give that one, or start a new run "
                "directory"
            )
