"""The examination of a pipeline's stages before any of them has run.

In: a checked Pipeline. Out: an Examination a stage, made as if each stage started from the model that its chain starts
from: tokenizer, window, memory plan and data are those of the later run. Left out: printing
(cluster/commands/check.py).
"""

from __future__ import annotations

from pathlib import Path

from cluster.config import Pipeline, Problem
from cluster.config.loading.pipeline import references, with_models, within
from cluster.inspect.examine import Examination, examine
from cluster.inspect.machine import Machine
from cluster.run.stages import PipelineDirectory


def examine_stages(pipeline: Pipeline, run_dir: str | Path, machine: Machine | None = None) -> dict[str, Examination]:
    """What is known of each stage, by its name."""
    directory, found = PipelineDirectory(run_dir), {}
    for number, stage in enumerate(pipeline.stages, 1):
        seen = examine(with_models(stage.config, pipeline.base), directory.stage(number, stage.name).root, machine)
        # The chain's first model has no reward head yet: the earlier stage trains one. Whether the model is here at all
        # that stage says itself.
        ours = {key for key in references(stage.config) if key != "model.path"}
        seen.wrong = [problem for problem in seen.wrong if problem.path not in ours]
        seen.cannot_run = [problem for problem in seen.cannot_run if problem.path not in ours]
        for key, name in references(stage.config).items():
            seen.notes.append(f"{key}: checked with {pipeline.base(f'stage:{name}')}, which stage {name} starts from")
        found[stage.name] = seen
    return found


def problems_of(stages: dict[str, Examination], wrong_only: bool = False) -> list[Problem]:
    """All stages' problems, each under its stage. wrong_only: not what this machine lacks."""
    return [
        within(name, problem)
        for name, found in stages.items()
        for problem in (found.wrong if wrong_only else found.problems)
    ]
