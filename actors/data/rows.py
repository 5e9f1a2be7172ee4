"""Raw rows with their places, from files, `datasets` and reasoning_gym.

In: a path, a hub id or a task name. Out: `RawRow`s: a mapping of columns and where it stands (file:line), or the
reason why there is none (not JSON, not an object). Left out: what the columns mean (prompts.py, preferences.py).
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.data.errors import DataError, RowError

JSONL_SUFFIXES = (".jsonl", ".ndjson")


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row as read. Exactly one of `columns` and `problem` is set."""

    where: str
    columns: Mapping[str, Any] | None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Origin:
    """Where rows come from: exactly one of a file or `datasets` directory, a hub id, or a reasoning_gym task."""

    path: str | None = None
    hub_id: str | None = None
    hub_config: str | None = None
    split: str = "train"
    task: str | None = None
    task_params: Mapping[str, Any] | None = None
    size: int = 1000
    seed: int = 0
    answer_formats: tuple[str, ...] = ()
    """How a task's answers are said, with {answer} and names of its metadata, in turns; none: as its reader says."""
    rejected_format: str | None = None
    """How the rejected side of a pair says the right answer; None: it says a wrong one as the chosen side does."""

    def __post_init__(self) -> None:
        given = [name for name, value in (("path", self.path), ("hub_id", self.hub_id), ("task", self.task)) if value]
        if len(given) != 1:
            raise ValueError(f"a data source needs exactly one of path, hub_id and task, got {given or 'none'}")
        for said in (*self.answer_formats, *([self.rejected_format] if self.rejected_format else [])):
            if "{answer}" not in said:
                raise ValueError(f"an answer's format must hold {{answer}}, got {said!r}")

    def say(self, columns: Mapping[str, Any], answer: str, number: int, otherwise: str) -> str:
        """The answer of the number-th entry in the format whose turn it is; otherwise: where none is given. RowError
        for a name that the entry does not have."""
        formats = self.answer_formats or (otherwise,)
        return said_as(formats[number % len(formats)], columns, answer)

    @property
    def name(self) -> str:
        return self.path or self.hub_id or f"reasoning_gym/{self.task}"


def read_rows(origin: Origin) -> Iterator[RawRow]:
    """Every row of the source, bad ones included, in file order."""
    if origin.task:
        return (RawRow(where, entry) for where, entry in read_task(origin.task, origin))
    if origin.hub_id:
        return _read_hub(origin.hub_id, origin)
    if origin.hub_config is not None:
        reason = f"the subset {origin.hub_config} is of a hub data set and this one is on disk; remove data.subset"
        raise DataError(origin.name, [(origin.name, reason)])
    assert origin.path is not None, "an origin has a path where it has neither a task nor a hub id"
    path = Path(origin.path).expanduser()
    if not path.exists():
        raise DataError(origin.name, [(str(path), "there is no such file or directory")])
    if path.is_dir():
        return _read_datasets_directory(path, origin.split)
    if path.suffix in JSONL_SUFFIXES:
        return _read_jsonl(path)
    if path.suffix == ".parquet":
        return _read_parquet(path)
    readable = ", ".join((*JSONL_SUFFIXES, ".parquet"))
    raise DataError(origin.name, [(str(path), f"unknown kind of file {path.suffix!r}; use {readable} or a directory")])


def _read_jsonl(path: Path) -> Iterator[RawRow]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                columns = json.loads(line)
            except UnicodeDecodeError as error:
                yield RawRow(where, None, f"not UTF-8 ({error.reason} at byte {error.start})")
                continue
            except json.JSONDecodeError as error:
                yield RawRow(where, None, f"not JSON ({error.msg} at column {error.colno})")
                continue
            if isinstance(columns, dict):
                yield RawRow(where, columns)
            else:
                yield RawRow(where, None, f"must be a JSON object, got {kind_of(columns)}")


def _read_parquet(path: Path) -> Iterator[RawRow]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=1024):
            for columns in batch.to_pylist():
                number += 1
                yield RawRow(f"{path}:row {number}", columns)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise DataError(str(path), [(f"{path}:row {number + 1}", f"not readable as Parquet ({error})")]) from error


def _read_datasets_directory(path: Path, split: str) -> Iterator[RawRow]:
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except (FileNotFoundError, ValueError) as error:
        reason = f"not a directory that `datasets` saved (Dataset.save_to_disk): {error}"
        raise DataError(str(path), [(str(path), reason)]) from error
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            reason = f"has no split {split!r}; its splits are {', '.join(loaded)}"
            raise DataError(str(path), [(str(path), reason)])
        loaded = loaded[split]
    return _enumerate(str(path), loaded)


def _read_hub(hub_id: str, origin: Origin) -> Iterator[RawRow]:
    import datasets

    try:
        loaded = datasets.load_dataset(hub_id, origin.hub_config, split=origin.split)
    # ValueError: unknown config or split; OSError covers a missing data set and every connection error.
    except (ValueError, OSError) as error:
        reason = f"cannot be loaded from the Hugging Face hub; check the id and the network, or give a path ({error})"
        raise DataError(hub_id, [(f"{hub_id}[{origin.split}]", reason)]) from error
    return _enumerate(f"{hub_id}[{origin.split}]", loaded)


def _enumerate(name: str, rows: Any) -> Iterator[RawRow]:
    for number, columns in enumerate(rows, start=1):
        yield RawRow(f"{name}:row {number}", dict(columns))


def read_task(task: str, origin: Origin) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where it stands, columns) of each question of a reasoning_gym task, which is the origin's: columns question,
    answer, metadata, and task and task_params, from which the `reasoning_gym` reward rebuilds the task that scores the
    answer."""
    params = dict(origin.task_params or {})
    dataset = create_task(task, params, origin.size, origin.seed)
    for number, entry in enumerate(dataset):
        yield f"reasoning_gym/{task}[seed {origin.seed}]:{number}", {**entry, "task": task, "task_params": params}


def said_as(said: str, columns: Mapping[str, Any], answer: str) -> str:
    """`said` with {answer}, {question} and the entry's metadata filled in."""
    known = {**columns.get("metadata", {}), "question": columns.get("question", ""), "answer": answer}
    try:
        return said.format(**known)
    except (KeyError, IndexError, ValueError) as error:
        names = ", ".join(f"{{{name}}}" for name in known)
        raise RowError(f"{said!r} cannot be filled in ({error}); an entry has {names}") from error


def create_task(task: str, params: Mapping[str, Any], size: int, seed: int) -> Any:
    """A reasoning_gym data set; DataError naming the nearest task or the parameter it does not know."""
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    where = f"reasoning_gym/{task}"
    if task not in DATASETS:
        near = difflib.get_close_matches(task, DATASETS, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; there are {len(DATASETS)}, from {min(DATASETS)} on"
        raise DataError(where, [(where, f"reasoning_gym has no such task{hint}")])
    try:
        return reasoning_gym.create_dataset(task, size=size, seed=seed, **params)
    # The task's own config class checks its parameters by assertion.
    except (TypeError, ValueError, AssertionError) as error:
        raise DataError(where, [(where, f"these parameters do not fit the task: {params} ({error})")]) from error


def kind_of(value: Any) -> str:
    """How a person names a JSON value's type."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true/false", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
