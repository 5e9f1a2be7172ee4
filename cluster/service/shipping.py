"""What a job is sent: the folder that it runs in, and Raylign's own code where that folder does not hold it.

In: a recipe's path, the folder that was asked for. Out: directories that Ray uploads, and what a job would not find in
them, before anything is sent. The job runs the Raylign that submitted it, whether its cluster has one or not; what
Raylign depends on the cluster must have. Left out: submitting (jobs.py).
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

from cluster.config.loading.load import ConfigError
from cluster.config.loading.paths import file_in, leads_to, named_paths
from cluster.config.loading.pipeline import Pipeline, read_run, within
from cluster.config.problem import Problem
from cluster.config.schema import Config

NAME = "raylign"
PACKAGES = ("actors", "learners", "cluster", "serve")
LOCAL = (".git", ".venv", "runs", "build", "__pycache__", ".pytest_cache", ".ruff_cache", ".mypy_cache", ".hypothesis")
"""Folders that stay here, wherever they lie in what is sent."""
EXCLUDES = tuple(f"{folder}/" for folder in LOCAL)


def checkout_root() -> Path | None:
    """The checkout that this code runs from; None where Raylign is installed without one."""
    root = _code_root()
    project = root / "pyproject.toml"
    if not project.is_file():
        return None
    return root if tomllib.loads(project.read_text()).get("project", {}).get("name") == NAME else None


def folder_of(recipe: Path) -> Path:
    """What a job gets of a recipe: the checkout that it lies in, else the recipe's own folder."""
    checkout, recipe = checkout_root(), recipe.resolve()
    return checkout if checkout is not None and recipe.is_relative_to(checkout) else recipe.parent


def code_beside(working_dir: Path | None) -> tuple[str, ...]:
    """Directories to send beside the working directory, each a module of its own; none where that is the checkout."""
    if working_dir is not None and working_dir == checkout_root():
        return ()
    return (*(str(_code_root() / package) for package in PACKAGES), *_installers_notes())


def refuse_what_stays_behind(recipe: Path, overrides: Sequence[str], root: Path) -> None:
    """ConfigError naming every file of the recipe that is found here, and that a job in a copy of `root` would not
    find. Whole paths are left to the cluster, whose nodes may see them."""
    run = read_run(recipe, overrides)
    stages = run.stages if isinstance(run, Pipeline) else ()
    problems = [within(stage.name, problem) for stage in stages for problem in _left(stage.config, recipe, root)]
    if not isinstance(run, Pipeline):
        problems = list(_left(run, recipe, root))
    if (stays := _stays(recipe.resolve(), root)) is not None:
        problems.append(Problem("", f"lies in {stays}/, which is not sent to the job; copy it out of there"))
    if problems:
        raise ConfigError(str(recipe), problems)


def _left(config: Config, recipe: Path, root: Path) -> Iterator[Problem]:
    folder = recipe.resolve().parent
    for keys, value in named_paths(config):
        path = file_in(keys, value)
        here = None if path is None else leads_to(path, folder, Path.cwd())
        if path is None or here is None:
            continue
        there, mend = leads_to(path, folder, root), "or write a whole path that every node sees"
        if there is None or not os.path.samefile(here, there) or not there.is_relative_to(root):
            wrong = f"{path} is not in {root}, which is what the job gets; copy it in there, give a --working-dir"
            yield Problem(".".join(keys), f"{wrong} that holds both, {mend}")
        elif (stays := _stays(there, root)) is not None:
            yield Problem(".".join(keys), f"{path} lies in {stays}/, which is not sent to the job; move it, {mend}")


def _stays(path: Path, root: Path) -> str | None:
    """The folder that keeps a path from being sent."""
    return next((part for part in path.relative_to(root).parts if part in LOCAL), None)


def _code_root() -> Path:
    return Path(__file__).resolve().parents[2]


def _installers_notes() -> list[str]:
    """The directory in which the installer wrote what Raylign is: the job's command line finds its verbs by it. None
    where it was not installed; then the cluster's own has to do."""
    try:
        files = metadata.distribution(NAME).files or []
    except metadata.PackageNotFoundError:
        return []
    return sorted({os.path.dirname(file.locate()) for file in files if file.parent.suffix == ".dist-info"})
