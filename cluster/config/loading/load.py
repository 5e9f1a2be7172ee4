"""Read a config: YAML, `key.path=value` overrides, and every problem at once.

In: a file's path and overrides. Out: a frozen `Config`, or one ConfigError that lists all problems, each with its
path, the rule, the value, and for an unknown key the nearest valid one. Checks never mutate.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from cluster.config.loading.paths import beside, placed
from cluster.config.problem import Problem
from cluster.config.rules.general import cross_section_problems
from cluster.config.schema import Config
from cluster.errors import UserError


class ConfigError(UserError):
    """The input is wrong (exit code 2). Lists every problem found."""

    def __init__(self, source: str, problems: Sequence[Problem]) -> None:
        self.source = source
        self.problems = tuple(problems)
        count = f"{len(problems)} problem{'s' if len(problems) != 1 else ''}"
        super().__init__("\n".join([f"{source}: {count}", *(f"  {p}" for p in problems)]))


class _Loader(yaml.SafeLoader):
    """YAML as recipes are written: 1e-5 is a number (YAML 1.1 reads text), and a key that stands twice is a mistake
    (YAML lets the last one win)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                where = node.start_mark.line + 1
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice in the section at line {where}; keep one", None
                )
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The config in `path` with overrides applied in order. Raises ConfigError with all problems."""
    source, tree = str(path), read_tree(path)
    if "stages" in tree:
        wrong = "a pipeline is run by `raylign train` and looked at by `raylign check`; give a recipe of one run here"
        raise ConfigError(source, [Problem("stages", wrong)])
    config, problems = placed(config_of(tree, source, overrides), beside(Path(path)), Path.cwd())
    if problems:
        raise ConfigError(source, problems)
    return config


def config_of(tree: dict[str, Any], source: str, overrides: Sequence[str] = ()) -> Config:
    """The config that `tree` says, with overrides applied to it."""
    problems: list[Problem] = []
    for override in overrides:
        try:
            keys, value = parse_override(override)
            set_key(tree, keys, value)
        except ValueError as error:
            problems.append(Problem(override, str(error)))
    config, wrong = validate(tree)
    if config is None or problems or wrong:
        raise ConfigError(source, [*problems, *wrong])
    return config


def validate(tree: dict[str, Any]) -> tuple[Config | None, list[Problem]]:
    """The config that `tree` says and all that is wrong with it; None where a section is no section yet."""
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        return None, explain(error)
    return config, cross_section_problems(config)


def read_tree(path: str | Path) -> dict[str, Any]:
    """The sections of a YAML file, unchecked."""
    source = str(path)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(source, [Problem("", f"cannot be read ({error.strerror}); give a recipe's path")]) from error
    except UnicodeDecodeError as error:
        raise ConfigError(source, [Problem("", f"is not UTF-8 text (byte {error.start}); save it as UTF-8")]) from error
    try:
        tree = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(source, [Problem("", f"is not YAML: {' '.join(str(error).split())}")]) from error
    if not isinstance(tree, dict):
        raise ConfigError(source, [Problem("", "must be a mapping of sections, such as `algorithm: grpo`")])
    return tree


def parse_override(text: str) -> tuple[list[str], Any]:
    """`learner.zero.stage=2` -> (["learner", "zero", "stage"], 2). The value is YAML."""
    key, sign, value = text.partition("=")
    if not sign or not all(key.split(".")):
        raise ValueError("an override is written key.path=value, such as learner.optimizer.lr=1e-5")
    try:
        return key.split("."), yaml.load(value, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"the value {value!r} is not YAML; quote it") from error


def set_key(tree: dict[str, Any], keys: list[str], value: Any) -> None:
    """Put a value at a path of keys, making the sections on the way. ValueError where a value stands in it."""
    for depth, key in enumerate(keys[:-1]):
        child = tree.setdefault(key, {})
        if key == "algorithm" and isinstance(child, str):
            child = tree[key] = {"name": child}
        if child is None:
            child = tree[key] = {}
        if not isinstance(child, dict):
            raise ValueError(f"{'.'.join(keys[: depth + 1])} is a value, not a section")
        tree = child
    tree[keys[-1]] = value


def explain(error: ValidationError, schema: type[BaseModel] = Config) -> list[Problem]:
    """One problem a line: a union that fails reports once per member, and the reader needs one of each."""
    return list(dict.fromkeys(_explain(e, schema) for e in error.errors()))


def _explain(error: Any, schema: type[BaseModel]) -> Problem:
    parts = [str(p) for p in error["loc"]]
    path = ".".join(parts)
    value = error["input"]
    match error["type"]:
        case "extra_forbidden":
            near = difflib.get_close_matches(parts[-1], _keys_at(parts[:-1], schema), n=1, cutoff=0.5)
            if not near:
                return Problem(path, f"unknown key; valid here: {', '.join(sorted(_keys_at(parts[:-1], schema)))}")
            return Problem(path, f"unknown key; did you mean {'.'.join([*parts[:-1], near[0]])}?")
        case "missing":
            return Problem(path, "is required")
        case "literal_error":
            rule = error["ctx"]["expected"].replace("'", "")
            return Problem(path, f"must be {rule}, got {value!r}")
        case _:
            rule = error["msg"][0].lower() + error["msg"][1:]
            return Problem(path, f"{rule.replace('input should be', 'must be')}, got {value!r}")


def _keys_at(path: Sequence[str], section: type[BaseModel]) -> list[str]:
    """Valid keys of the section at `path`."""
    for key in path:
        if key in section.model_fields:
            inner = _section_of(section.model_fields[key].annotation)
            section = inner if inner is not None else section
    return list(section.model_fields)


def _section_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, UnionType, dict):
        found = [s for s in map(_section_of, get_args(annotation)) if s is not None]
        return found[0] if found else None
    return None
