"""Rows that are learned from as they stand: the frame that pairs, demonstrations and judged responses share.

In: settings, a tokenizer, raw rows and what makes a row of each. Out: `StoredRows`, tokenised once. What is too long is
refused, dropped or cut at the prompt's beginning; every bad row is named. Left out: what a row is (preferences.py,
demonstrations.py, judged.py).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import Field, dataclass, replace
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np

from actors.data.chat import prompt_ids, require_template, response_ids
from actors.data.control import refuse_columns, refuse_settings
from actors.data.errors import DataError, Problems, RowError, check_skip_invalid
from actors.data.rows import Origin, RawRow, kind_of
from actors.data.tokenizer import Message, Tokenizer

OVERLONG = ("refuse", "truncate_left", "drop")


@dataclass(frozen=True, slots=True)
class StoredSettings:
    """max_tokens bounds prompt + longest response; overlong says what becomes of a longer row (truncate_left cuts the
    prompt). to_template_end: responses run to the end of what the chat template writes, as a reward model reads them,
    and not to their end-of-turn token."""

    origin: Origin
    system_prompt: str | None = None
    chat_template: bool = True
    max_tokens: int | None = None
    overlong: str = "refuse"
    skip_invalid: int | float = 0
    to_template_end: bool = False

    def __post_init__(self) -> None:
        check_skip_invalid(self.skip_invalid)
        check_overlong(self.overlong)


def check_overlong(value: str) -> None:
    """ValueError unless `value` says what becomes of a row that is too long."""
    if value not in OVERLONG:
        raise ValueError(f"overlong must be one of {', '.join(OVERLONG)}, got {value!r}")


class StoredRow(Protocol):
    """A frozen dataclass: `load_rows` cuts a row's prompt by replacing it."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def id(self) -> int:
        """Place among the source's usable rows."""

    @property
    def prompt_tokens(self) -> tuple[int, ...]: ...

    @property
    def responses(self) -> tuple[tuple[int, ...], ...]:
        """What follows the prompt, each apart."""

    @property
    def facts(self) -> Sequence[Sequence[float]]:
        """Numbers beside the tokens that a resumed run must find again."""


Row = TypeVar("Row", bound=StoredRow)


@dataclass(frozen=True, slots=True)
class StoredRows(Generic[Row]):
    """All rows of a source; rows[i].id == i. read = len(rows) + skipped + dropped."""

    name: str
    rows: tuple[Row, ...]
    read: int
    skipped: int = 0
    truncated: int = 0
    dropped: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> Row:
        return self.rows[row]

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt with its longest response."""
        return max(len(row.prompt_tokens) + max(map(len, row.responses)) for row in self.rows)

    def fingerprint(self) -> str:
        """Hash of all token ids and facts in order: a resumed run compares it, so that ids still mean the same rows."""
        h = hashlib.sha256()
        for row in self.rows:
            for ids in (row.prompt_tokens, *row.responses):
                h.update(np.array([len(ids), *ids], np.int32).tobytes())
            for numbers in row.facts:
                h.update(np.array([len(numbers), *numbers], np.float64).tobytes())
        return h.hexdigest()


def load_rows(
    settings: StoredSettings,
    tokenizer: Tokenizer,
    raws: Iterable[RawRow],
    make: Callable[[int, Mapping[str, Any]], Row],
    noun: str,
    texts: Sequence[str],
) -> StoredRows[Row]:
    """`make(id, columns)` of every row. DataError names all bad rows at once, as `noun`s. texts: the columns whose text
    or messages become tokens, in which no control token may be spelled."""
    require_template(tokenizer, settings.chat_template)
    name, limit = settings.origin.name, settings.max_tokens
    refuse_settings(tokenizer, name, system_prompt=settings.system_prompt)
    problems = Problems(name, settings.skip_invalid)
    rows: list[Row] = []
    read = truncated = dropped = 0
    for raw in raws:
        read += 1
        try:
            if raw.columns is None:
                raise RowError(raw.problem or "unreadable")
            refuse_columns(tokenizer, raw.columns, texts)
            row = make(len(rows), raw.columns)
        except RowError as error:
            problems.skip(raw.where, str(error))
            continue
        longest = max(map(len, row.responses))
        length = len(row.prompt_tokens) + longest
        if limit is not None and length > limit:
            room = limit - longest
            if settings.overlong == "drop":
                dropped += 1
                continue
            if settings.overlong == "refuse" or room < 1:
                fix = "set overlong to drop, or enlarge the window"
                problems.refuse(raw.where, f"{noun} of {length} tokens, the window is {limit}; {fix}")
                continue
            truncated += 1
            row = replace(row, prompt_tokens=row.prompt_tokens[-room:])
        rows.append(row)
    skipped = problems.settle(read)
    if not rows:
        raise DataError(name, [(name, f"no usable {noun} among {read} rows")])
    return StoredRows(name, tuple(rows), read, skipped, truncated, dropped)


def column(columns: Mapping[str, Any], name: str) -> Any:
    """A row's column; RowError naming those there are."""
    if columns.get(name) is None:
        raise RowError(f"no column {name!r}; the row has {', '.join(columns) or 'none'}")
    return columns[name]


def text_column(columns: Mapping[str, Any], name: str) -> str:
    """A column that must hold text."""
    text = column(columns, name)
    if not isinstance(text, str):
        raise RowError(f"{name} must be text, got {kind_of(text)}")
    if not text.strip():
        raise RowError(f"{name} is empty")
    return text


def number_column(columns: Mapping[str, Any], name: str) -> float:
    """A column that must hold a finite number."""
    value = column(columns, name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise RowError(f"{name} must be a finite number, got {value!r}")
    return float(value)


def branch_ids(
    tokenizer: Tokenizer, messages: Sequence[Message], responses: Sequence[str], settings: StoredSettings
) -> tuple[tuple[int, ...], ...]:
    """The prompt's ids and, for each response, those that continue it."""
    templated, to_end = settings.chat_template, settings.to_template_end
    prompt = prompt_ids(tokenizer, messages, templated)
    return (tuple(prompt), *(tuple(response_ids(tokenizer, messages, r, templated, to_end)) for r in responses))
