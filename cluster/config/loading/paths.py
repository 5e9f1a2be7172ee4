"""Where relative paths of a recipe lead: from the working directory, else from the recipe's own folder.

In: a Config and the recipe's folder. Out: the same with each path that only stands beside the recipe written so that it
leads there from the working directory; a Problem where both have a file of the name, and they differ. What stands in
neither is left as it is: it may be a hub id, a module or a file of another machine. Left out: opening any of it.
"""

from __future__ import annotations

import filecmp
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.config.problem import Problem
from cluster.config.schema import Config

Keys = tuple[str, ...]
FROM_ANYWHERE = ("/", "~")
SAVED, HELD = ("config.yaml", "pipeline.yaml"), "lock"
"""What a run or a pipeline writes into its directory, beside the lock that its driver held."""


def named_paths(config: Config) -> Iterator[tuple[Keys, str]]:
    """(keys, value) of all that may lead to a file: rows, models, and functions in a file (`file.py:function`)."""
    if config.data.path is not None:
        yield ("data", "path"), config.data.path
    yield ("model", "path"), config.model.path
    if config.critic is not None and config.critic.path is not None:
        yield ("critic", "path"), config.critic.path
    reward = config.reward
    yield from _scoring(("reward",), reward.functions, reward.models)
    for name, judge in reward.judges.items():
        for key, value in (("path", judge.path), ("function", judge.function)):
            if value is not None:
                yield ("reward", "judges", name, key), value
    if reward.safety is not None:
        yield from _scoring(("reward", "safety"), reward.safety.functions, reward.safety.models)


def _scoring(section: Keys, functions: Mapping[str, Any], models: Mapping[str, Any]) -> Iterator[tuple[Keys, str]]:
    yield from (((*section, "functions", name, "function"), part.function) for name, part in functions.items())
    yield from (((*section, "models", name, "path"), part.path) for name, part in models.items())


def file_in(keys: Keys, value: str) -> str | None:
    """The relative path of a file or a directory that the value may mean; None for anything else."""
    if keys[-1] == "function":
        where, _, _ = value.rpartition(":")
        value = where if where.endswith(".py") else ""
    other = value.startswith(FROM_ANYWHERE) or "://" in value or not value.strip("./")
    return None if other else value


def leads_to(path: str, folder: Path, here: Path) -> Path | None:
    """What a relative path of a recipe in `folder` means in the directory `here`; None where it stands in neither."""
    found = next((root for root in (here, folder) if (root / path).exists()), None)
    return None if found is None else Path(os.path.normpath(found / path))


def beside(recipe: Path) -> Path:
    """The folder that a recipe's paths may be relative to: its own. Those that a run has saved were found from the
    working directory, and that run's own files (samples, policy) are never meant."""
    saved = recipe.name in SAVED and (recipe.parent / HELD).is_file()
    return Path.cwd() if saved else recipe.parent


def placed(config: Config, folder: Path, here: Path) -> tuple[Config, list[Problem]]:
    """The config as it reads from the directory `here`, for a recipe in `folder`."""
    problems = []
    for keys, value in named_paths(config):
        path = file_in(keys, value)
        if path is None or not (beside := folder / path).exists():
            continue
        if not (here / path).exists():
            config = _changed(config, keys, _seen_from(beside, here) + value.removeprefix(path))
        elif differ(here / path, beside):
            both = f"{path} stands in {here} and in {folder}, beside the recipe, and they differ"
            problems.append(Problem(".".join(keys), f"{both}; rename one, or write which is meant as a whole path"))
    return config, problems


def _seen_from(path: Path, here: Path) -> str:
    """Relative where it lies below `here`, as it does in a copy of that directory on another machine."""
    absolute, below = Path(os.path.abspath(path)), Path(os.path.abspath(here))
    return str(absolute.relative_to(below)) if absolute.is_relative_to(below) else str(absolute)


def differ(one: Path, other: Path) -> bool:
    """Whether two paths lead to different things: files with the same content are the same."""
    if os.path.samefile(one, other):
        return False
    return not (one.is_file() and other.is_file() and filecmp.cmp(one, other, shallow=False))


def _changed(section: Any, keys: Sequence[str], value: str) -> Any:
    """A copy of a section with another value at a path of keys."""
    if not keys:
        return value
    key, rest = keys[0], keys[1:]
    if isinstance(section, dict):
        return {**section, key: _changed(section[key], rest, value)}
    return section.model_copy(update={key: _changed(getattr(section, key), rest, value)})
