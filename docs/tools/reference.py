"""Writes docs/reference/config.md: every key of a recipe, from the schema, and which checks can name it.

In: the schema's classes with their docstrings, and the checks' source (rules.py). Out: one Markdown page, the same for
the same source; `make reference` writes it, a test says when it is stale. Left out: what a method's name sets
(docs/use/methods.md), pipelines.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, GetPydanticSchema, TypeAdapter
from pydantic.fields import FieldInfo

from cluster.config.schema import Config
from docs.tools.rules import MODULES, UNKNOWN, Named, named_keys

PAGE = Path(__file__).resolve().parents[1] / "reference" / "config.md"
NAME = "NAME"
"""Stands where a recipe gives a name of its own, as in reward.functions.NAME."""
NULL = "`null`"
NO_KEYS = ("placement", "memory", "--run-dir")
"""What checks name that is no key of a recipe."""
PLAIN = {str: "text", int: "whole number", float: "number", bool: "true or false", Any: "any"}
BOUNDS = {Ge: ("ge", "at least"), Gt: ("gt", "above"), Le: ("le", "at most"), Lt: ("lt", "below")}

INTRODUCTION = """\
# Config reference

Every key of a recipe. `raylign check` refuses a key that is not here and names the nearest one. An override on the
command line is the key with its value: `learner.optimizer.lr=1e-5`.

This page is written from the source by `make reference`, and a test compares the two. Keys, types, defaults and texts
are those of `cluster/config/schema.py` and `cluster/config/sections/`. Under a section stand the sentences with which
`raylign check` can name its keys, without the values that they hold (…). They are read from the source of the checks:
{files}. Where a check looks at a model, data or this machine, only a run of it can tell the sentence, and the
file stands alone. When each of them speaks, its source says.
"""


@dataclass(frozen=True, slots=True)
class Key:
    """One key that holds a value."""

    path: str
    type: str
    default: str
    text: str


@dataclass(slots=True)
class Part:
    """A section: its own keys, without those of sections in it. optional: absent unless a recipe has it."""

    path: str
    text: str
    optional: bool
    keys: list[Key] = field(default_factory=list)


def parts(model: type[BaseModel] = Config) -> list[Part]:
    """Every section, in the order of the schema; the first is the recipe's own keys."""
    return list(_parts(model, "", _doc(model), None, False))


def _parts(model: type[BaseModel], path: str, text: str, given: BaseModel | None, optional: bool) -> Iterator[Part]:
    """given: the section's defaults where it stands, which may be others than the class's."""
    part = Part(path, text, optional)
    inner: list[Iterator[Part]] = []
    for name, info in model.model_fields.items():
        own = f"{path}.{name}" if path else name
        default = getattr(given, name) if given is not None else info.default
        section, by_name = _section(info.annotation)
        if section is None:
            part.keys.append(Key(own, _type(info.annotation, info), _default(info, default), info.description or ""))
            continue
        absent = not by_name and default is None
        where = f"{own}.{NAME}" if by_name else own
        said = "" if info.description is None else f" {info.description}"
        instance = default if isinstance(default, BaseModel) else None
        inner.append(_parts(section, where, _doc(section) + said, instance, absent))
    yield part
    for found in inner:
        yield from found


def _section(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """(section, whether a recipe names several of them) that a key holds; (None, False) for a value."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, False
    if get_origin(annotation) in (Union, UnionType, Annotated):
        found = [section for section, _ in map(_section, get_args(annotation)) if section is not None]
        return (found[0], False) if found else (None, False)
    if get_origin(annotation) is dict:
        section, _ = _section(get_args(annotation)[1])
        return section, section is not None
    return None, False


def _type(annotation: Any, info: FieldInfo | None = None) -> str:
    """A type as a person says it, with its bounds."""
    metadata = info.metadata if info is not None else []
    bounds = _bounds(metadata)
    arguments = get_args(annotation)
    if names := _names(metadata):
        return _choice(names)
    match get_origin(annotation):
        case origin if origin is Literal:
            return _choice(arguments)
        case origin if origin in (Union, UnionType):
            kinds = [_type(each) + (bounds if each is not NoneType else "") for each in arguments]
            return " or ".join(kind for kind in kinds if info is None or info.default is not None or kind != NULL)
        case origin if origin is Annotated:
            names = _names(arguments[1:])
            return _choice(names) if names else _type(arguments[0]) + _bounds(arguments[1:])
        case origin if origin is list:
            return f"list of {_type(arguments[0])}"
        case origin if origin is tuple:
            return f"{len(arguments)} times {_type(arguments[0])}"
        case origin if origin is dict:
            return "mapping"
    return NULL if annotation is NoneType else PLAIN[annotation] + bounds


def _names(metadata: Sequence[Any]) -> Sequence[Any]:
    """The names that `one_of` allows; none where it is not among these."""
    for each in metadata:
        if isinstance(each, GetPydanticSchema):
            return TypeAdapter(Annotated[str, each]).json_schema()["enum"]
    return ()


def _choice(values: Sequence[Any]) -> str:
    return ", ".join(f"`{_yaml(value)}`" for value in values)


def _bounds(metadata: Sequence[Any]) -> str:
    flat = [one for each in metadata for one in (each.metadata if isinstance(each, FieldInfo) else [each])]
    bounded = [(one, *BOUNDS[type(one)]) for one in flat if type(one) in BOUNDS]
    said = [f"{words} {getattr(one, name):g}" for one, name, words in bounded]
    patterns = [f"`{one.pattern}`" for one in flat if getattr(one, "pattern", None)]
    return "".join(f", {each}" for each in (*said, *patterns))


def _default(info: FieldInfo, default: Any) -> str:
    return "required" if info.is_required() else f"`{_yaml(default)}`"


def _yaml(value: Any) -> str:
    """A value as a recipe writes it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_yaml, value))}]"
    if isinstance(value, str):
        return value or '""'
    return f"{value:g}" if isinstance(value, float) else str(value)


def _doc(model: type[BaseModel]) -> str:
    return " ".join((model.__doc__ or "").split())


def matches(named: str, path: str) -> bool:
    """Whether a check's path, `*` for what only a run can tell, can be this one."""
    theirs, mine = named.split("."), path.split(".")
    return len(theirs) == len(mine) and all(a in (b, UNKNOWN) for a, b in zip(theirs, mine, strict=True))


def owners(named: Sequence[Named], found: Sequence[Part]) -> dict[str, list[tuple[str, Named]]]:
    """For each section's path the checks of it and of its keys, each with the path it names, in the keys' order."""
    known: dict[str, str] = {}
    for part in found:
        if part.path.endswith(f".{NAME}"):  # a mapping of sections is named without a name too
            known[part.path.removesuffix(f".{NAME}")] = part.path
        known |= dict.fromkeys((part.path, *(key.path for key in part.keys)), part.path)
    by_part: dict[str, list[tuple[str, Named]]] = {}
    for path, owner in known.items():
        mine = [(path, each) for each in named if set(each.path) != {UNKNOWN} and matches(each.path, path)]
        by_part.setdefault(owner, []).extend(mine)
    return by_part


def strangers(named: Sequence[Named], found: Sequence[Part]) -> list[str]:
    """Paths that checks name and no recipe has."""
    placed = {each for checks in owners(named, found).values() for _, each in checks}
    return [each.path for each in named if each not in placed and each.path not in NO_KEYS and each.path != UNKNOWN]


def page() -> str:
    """The whole page."""
    found, named = parts(), named_keys()
    checks = owners(named, found)
    text = [INTRODUCTION.format(files=_folders(MODULES))]
    for part in found:
        text.append(_section_text(part, checks.get(part.path, [])))
    return "\n".join(text)


def _section_text(part: Part, checks: Sequence[tuple[str, Named]]) -> str:
    depth = part.path.count(".")
    lines = ["## The recipe itself" if not part.path else f"{'#' * min(depth + 2, 4)} {part.path}", ""]
    absent = " Absent unless a recipe has it." if part.optional else ""
    if part.path:
        lines += [f"{_cell(part.text)}{absent}", ""]
    if part.keys:
        lines += ["| key | type | default | what for |", "| --- | --- | --- | --- |"]
        for key in part.keys:
            name = key.path.rpartition(".")[2]
            lines.append(f"| `{name}` | {key.type} | {key.default} | {_cell(key.text)} |")
        lines.append("")
    if checks:
        lines += ["Checks that name it:" if not part.keys else "Checks that name them:", "", *_check_lines(checks), ""]
    return "\n".join(lines)


def _check_lines(checks: Sequence[tuple[str, Named]]) -> list[str]:
    """A line a path and file, with the sentences."""
    by_place: dict[tuple[str, str], list[str]] = {}
    for path, each in checks:
        said = by_place.setdefault((path, each.file), [])
        said += [each.sentence] if each.sentence and each.sentence not in said else []
    return [
        f"- `{path}`{''.join(f' *{_cell(sentence)}*' + ('.' if last else ' ·') for last, sentence in _ends(said))} "
        f"({Path(file).name})"
        for (path, file), said in by_place.items()
    ]


def _ends(said: Sequence[str]) -> Iterator[tuple[bool, str]]:
    return ((place == len(said) - 1, each) for place, each in enumerate(said))


def _cell(text: str) -> str:
    """Text for a table or a list: one line, nothing of it markup by accident."""
    plain = re.sub(r"\s+", " ", text).replace("|", "\\|").replace("*", "\\*")
    return re.sub(r"docs/([\w/]*?)(\w+)\.md", r"[\2](../\1\2.md)", plain)


def _folders(modules: Sequence[str]) -> str:
    """Files of modules, by folder."""
    by_folder: dict[str, list[str]] = {}
    for module in modules:
        folder, _, name = module.rpartition(".")
        by_folder.setdefault(folder.replace(".", "/"), []).append(f"`{name}.py`")
    return ", ".join(f"{', '.join(names)} in `{folder}/`" for folder, names in by_folder.items())


def main() -> None:
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(PAGE.parents[2])}")


if __name__ == "__main__":
    main()
