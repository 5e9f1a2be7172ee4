"""`raylign init [DIR] [--recipe NAME]`: a recipe, rows and a reward to start from.

In: a folder, and a recipe that ships with Raylign. Out: DIR/recipe.yaml, over rows beside it and, where the method
scores its own samples, DIR/rewards.py; then the next command. It passes `raylign check` and trains as it stands. Left
out: what the files say (cluster/config/starter).
"""

from __future__ import annotations

import difflib
import re
import shlex
from pathlib import Path
from typing import Annotated

import typer

from cluster.errors import UserError

SHIPPED = Path(__file__).resolve().parents[2] / "deploy" / "recipes"
"""Beside the package, in a checkout and in a wheel alike."""
DEFAULT = "grpo"


def shipped_recipes() -> list[str]:
    """The names of all, those for GPUs as `gpu/NAME`."""
    return sorted(path.relative_to(SHIPPED).with_suffix("").as_posix() for path in SHIPPED.rglob("*.yaml"))


def init(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where to; made if need be.")] = Path("."),
    recipe: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help=f"What to start from: {', '.join(shipped_recipes())}.",
            autocompletion=shipped_recipes,
        ),
    ] = DEFAULT,
) -> None:
    """Write a recipe, a reward and rows to start from, and say the next command."""
    from cluster.config import load_run
    from cluster.config.starter.project import RECIPE, starter_files

    file = _shipped(recipe)
    files = starter_files(file.read_text(), load_run(file), recipe, _run_name(directory, recipe))
    _write(directory, files)
    written = shlex.quote(str(directory / RECIPE))
    typer.echo(f"wrote {', '.join(str(directory / name) for name in files)}")
    typer.echo(f"next:  raylign check {written}")
    typer.echo(f"then:  raylign train {written}")


def _shipped(recipe: str) -> Path:
    names = shipped_recipes()
    if recipe not in names:
        near = difflib.get_close_matches(recipe, names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(names)}"
        raise UserError(f"there is no recipe {recipe}; {hint}")
    return SHIPPED / f"{recipe}.yaml"


def _run_name(directory: Path, recipe: str) -> str:
    """The folder's name, as far as a run may be called so."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", directory.resolve().name).strip("-._")
    return name or recipe.rpartition("/")[2]


def _write(directory: Path, files: dict[str, str]) -> None:
    """All of them or none: what is there already is named and left alone."""
    taken = [str(directory / name) for name in files if (directory / name).exists()]
    if taken:
        raise UserError(f"{' and '.join(taken)} {'is' if len(taken) == 1 else 'are'} there already; give another DIR")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (directory / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{directory} cannot be written to ({error.strerror}); give another DIR") from error
