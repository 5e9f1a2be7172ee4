"""A pipeline: one YAML file whose stages are runs, each starting from what an earlier one exported.

In: a file with `name`, `defaults` (sections merged under every stage; a stage's `section: null` takes one away) and
`stages`, a list of recipes with a `name` each; overrides. Out: a frozen `Pipeline`, or one ConfigError with the
problems of all stages. A path `stage:NAME` means the model that stage exports. Left out: running (cluster/pipeline.py).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from cluster.config.loading.load import ConfigError, config_of, explain, parse_override, read_tree, set_key, validate
from cluster.config.loading.paths import beside, placed
from cluster.config.problem import Problem
from cluster.config.schema import Config
from cluster.config.sections.section import Section, name_only

REFERENCE = "stage:"
NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"
"""Of stages: no dots, for an override names a stage between dots."""


class Stage(Section):
    """One run of the pipeline. Its config may hold `stage:NAME` where a model's path stands."""

    name: str
    config: Config


class Pipeline(Section):
    """Checked stages, in their order."""

    name: str
    stages: tuple[Stage, ...]

    def stage(self, name: str) -> Stage:
        return next(stage for stage in self.stages if stage.name == name)

    def base(self, path: str) -> str:
        """The model that a path's chain of stages starts from; the path itself where it names no stage."""
        while path.startswith(REFERENCE):
            path = self.stage(path.removeprefix(REFERENCE)).config.model.path
        return path

    def dump(self) -> dict[str, Any]:
        """The resolved pipeline as plain data, which is a pipeline file again."""
        stages = [{**stage.config.model_dump(mode="json"), "name": stage.name} for stage in self.stages]
        return {"name": self.name, "stages": stages}


class PipelineFile(Section):
    """The file as it is written; its stages are checked when they are merged with the defaults."""

    name: str = Field(pattern=Config.model_fields["name"].metadata[0].pattern)
    defaults: dict[str, Any] = {}
    stages: Annotated[list[dict[str, Any]], Field(min_length=1)]


def load_run(path: str | Path, overrides: Sequence[str] = ()) -> Config | Pipeline:
    """What `raylign train` is given: one run, or a pipeline, which has `stages`."""
    run, folder, problems = read_run(path, overrides), beside(Path(path)), list[Problem]()
    if isinstance(run, Pipeline):
        stages = []
        for stage in run.stages:
            config, wrong = placed(stage.config, folder, Path.cwd())
            stages.append(stage.model_copy(update={"config": config}))
            problems += [within(stage.name, problem) for problem in wrong]
        run = run.model_copy(update={"stages": tuple(stages)})
    else:
        run, problems = placed(run, folder, Path.cwd())
    if problems:
        raise ConfigError(str(path), problems)
    return run


def read_run(path: str | Path, overrides: Sequence[str] = ()) -> Config | Pipeline:
    """The same as it is written, wherever its relative paths lead."""
    tree = read_tree(path)
    return (pipeline_of if "stages" in tree else config_of)(tree, str(path), overrides)


def pipeline_of(tree: dict[str, Any], source: str, overrides: Sequence[str] = ()) -> Pipeline:
    """The pipeline that `tree` says, with overrides applied to it. ConfigError with all problems."""
    try:
        PipelineFile.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(source, explain(error, PipelineFile)) from error
    problems = [*_name_problems(tree), *_override(tree, overrides)]
    if not isinstance(tree["name"], str):  # by an override
        raise ConfigError(source, [*problems, Problem("name", f"must be text, got {tree['name']!r}")])
    if "name" in tree.get("defaults", {}):
        problems.append(Problem("defaults.name", "each stage has a name of its own; remove it"))
    stages = []
    for number, own in enumerate(tree["stages"], 1):
        label = own["name"] if isinstance(own.get("name"), str) else f"stage {number}"
        merged = merge(_named(tree.get("defaults", {})), _named(own))
        config, wrong = validate({**merged, "name": f"{tree['name']}.{label.replace(' ', '-')}"})
        problems += [within(label, problem) for problem in wrong]
        if config is not None:
            stages.append(Stage(name=label, config=config))
    if not any(problem.path.startswith("stages[") for problem in problems):  # else a reference may mean either
        names = [own["name"] for own in tree["stages"]]
        problems += [within(s.name, p) for s in stages for p in _reference_problems(s, names, stages)]
    if problems:
        raise ConfigError(source, problems)
    return Pipeline(name=tree["name"], stages=tuple(stages))


def merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Sections merge key by key, any other value replaces. null over a section takes the section away."""
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(below, dict) and value is None:
            del merged[key]
        else:
            merged[key] = merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def within(stage: str, problem: Problem) -> Problem:
    """A problem of a stage's config, as one of the pipeline."""
    return Problem(f"{stage}: {problem.path}" if problem.path else stage, problem.message)


def references(config: Config) -> dict[str, str]:
    """Keys whose path names a stage, with that stage's name."""
    paths = {"model.path": config.model.path}
    if config.critic is not None and config.critic.path is not None:
        paths["critic.path"] = config.critic.path
    reward = config.reward
    paths |= {f"reward.models.{name}.path": model.path for name, model in reward.models.items()}
    if reward.safety is not None:
        paths |= {f"reward.safety.models.{name}.path": model.path for name, model in reward.safety.models.items()}
    paths |= {f"reward.judges.{name}.path": judge.path for name, judge in reward.judges.items() if judge.path}
    return {key: path.removeprefix(REFERENCE) for key, path in paths.items() if path.startswith(REFERENCE)}


def with_models(config: Config, find: Callable[[str], str]) -> Config:
    """The config with `find(path)` for every path of a model."""

    def found(section: Any) -> Any:
        return section.model_copy(update={"path": find(section.path)})

    changed: dict[str, Any] = {"model": found(config.model)}
    if config.critic is not None and config.critic.path is not None:
        changed["critic"] = found(config.critic)
    reward = config.reward
    scored_by: dict[str, Any] = {"models": {name: found(model) for name, model in reward.models.items()}}
    scored_by["judges"] = {name: found(judge) if judge.path else judge for name, judge in reward.judges.items()}
    if reward.safety is not None:
        costs = {name: found(model) for name, model in reward.safety.models.items()}
        scored_by["safety"] = reward.safety.model_copy(update={"models": costs})
    return config.model_copy(update={**changed, "reward": reward.model_copy(update=scored_by)})


def _named(tree: dict[str, Any]) -> dict[str, Any]:
    """With `algorithm: ppo` written out, so that it merges."""
    return {**tree, "algorithm": name_only(tree["algorithm"])} if "algorithm" in tree else tree


def _name_problems(tree: dict[str, Any]) -> Iterator[Problem]:
    seen: set[str] = set()
    for number, own in enumerate(tree["stages"]):
        path, name = f"stages[{number}].name", own.get("name")
        if name is None:
            yield Problem(path, "is required: later stages and overrides call the stage by it")
        elif not isinstance(name, str) or not re.match(NAME, name):
            yield Problem(path, f"must be letters, digits, _ and -, got {name!r}")
        elif name in seen:
            yield Problem(path, f"two stages are named {name}; rename one")
        else:
            seen.add(name)


def _override(tree: dict[str, Any], overrides: Sequence[str]) -> list[Problem]:
    """Apply `stages.NAME.key.path=value` to that stage, `name=value` to the pipeline, the rest to the defaults."""
    problems = []
    stages = {own["name"]: own for own in tree["stages"] if isinstance(own.get("name"), str)}
    for override in overrides:
        try:
            keys, value = parse_override(override)
            if keys == ["name"]:
                tree["name"] = value
            elif keys[0] != "stages":
                keys = keys[1:] if keys[0] == "defaults" and len(keys) > 1 else keys
                _refuse_unheard(keys, stages)
                set_key(tree.setdefault("defaults", {}), keys, value)
            elif len(keys) < 3 or keys[2] == "name":
                raise ValueError("an override of a stage is written stages.NAME.key.path=value")
            elif keys[1] not in stages:
                raise ValueError(f"there is no stage {keys[1]}{_nearest(keys[1], list(stages))}")
            else:
                set_key(stages[keys[1]], keys[2:], value)
        except ValueError as error:
            problems.append(Problem(override, str(error)))
    return problems


def _refuse_unheard(keys: list[str], stages: dict[str, dict[str, Any]]) -> None:
    """A default that every stage overrules would be ignored."""

    def sets(tree: Any) -> bool:
        for key in keys:
            if not isinstance(tree, dict) or key not in tree:
                return False
            tree = tree[key]
        return True

    if stages and all(sets(own) for own in stages.values()):
        path = ".".join(keys)
        raise ValueError(f"every stage sets {path} itself; write stages.NAME.{path}=value ({', '.join(stages)})")


def _reference_problems(stage: Stage, names: list[str], stages: Sequence[Stage]) -> Iterator[Problem]:
    config, before = stage.config, names[: names.index(stage.name)]
    if (config.data.path or "").startswith(REFERENCE):
        yield Problem("data.path", f"a stage exports a model and no data, got {config.data.path}")
    for key, name in references(config).items():
        if name not in names:
            yield Problem(key, f"there is no stage {name}{_nearest(name, before)}")
        elif name not in before:
            come = f"those before are {', '.join(before)}" if before else "this is the first"
            yield Problem(key, f"must be a stage that comes before this one ({come}), got {REFERENCE}{name}")
        elif (other := next((s for s in stages if s.name == name), None)) is not None:
            yield from _fit_problems(key, config, other)


def _fit_problems(key: str, config: Config, other: Stage) -> Iterator[Problem]:
    """What the other stage exports must be what this key takes."""
    judge = other.config.algorithm.name == "reward_model"
    if not other.config.checkpoint.export:
        yield Problem(key, f"the stage {other.name} exports nothing (its checkpoint.export is false); set that to true")
    if key.startswith("reward.judges") and judge:
        yield Problem(key, f"the stage {other.name} trains a reward model, a judge answers in text")
    elif key.startswith("reward.") and not key.startswith("reward.judges") and not judge:
        yield Problem(key, f"the stage {other.name} trains a policy by {other.config.algorithm.name}, no reward model")
    if key == "model.path" and judge and config.algorithm.name != "reward_model":
        yield Problem(key, f"the stage {other.name} trains a reward model, which {config.algorithm.name} cannot tune")


def _nearest(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; there are {', '.join(names)}" if names else "; no stage comes before this one"
