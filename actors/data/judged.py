"""Single responses that someone judged: desirable or not (KTO), or rated by a number (reward models).

In: `JudgedSettings` and a tokenizer; rows hold a prompt (text or messages), a completion and a label. Out: `StoredRows`
of `JudgedResponse`s. Left out: pairs (preferences.py), batching.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from actors.data.chat import messages_of
from actors.data.errors import RowError
from actors.data.preferences import generate_pairs
from actors.data.rows import Origin, RawRow, read_rows
from actors.data.stored import StoredRows, StoredSettings, branch_ids, column, load_rows, number_column, text_column
from actors.data.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class JudgedSettings(StoredSettings):
    """binary: the label is true or false (1 or 0); else a number, within `label_range` where that is given. A task
    makes judged responses: see `generate_judged`."""

    prompt_column: str = "prompt"
    completion_column: str = "completion"
    label_column: str = "label"
    binary: bool = True
    label_range: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class JudgedResponse:
    """label: 1 or 0 where it is binary."""

    id: int
    prompt_tokens: tuple[int, ...]
    response_tokens: tuple[int, ...]
    label: float

    @property
    def responses(self) -> tuple[tuple[int, ...], ...]:
        return (self.response_tokens,)

    @property
    def facts(self) -> Sequence[Sequence[float]]:
        return ((self.label,),)


def load_judged(settings: JudgedSettings, tokenizer: Tokenizer) -> StoredRows[JudgedResponse]:
    """Read, check, template and tokenise every row. DataError names all bad rows at once."""

    def make(number: int, columns: Mapping[str, Any]) -> JudgedResponse:
        name = settings.prompt_column
        messages = messages_of(name, column(columns, name), settings.system_prompt)
        response = text_column(columns, settings.completion_column)
        prompt, ids = branch_ids(tokenizer, messages, (response,), settings)
        return JudgedResponse(number, prompt, ids, _label(columns, settings))

    raws = generate_judged(settings.origin) if settings.origin.task else read_rows(settings.origin)
    texts = (settings.prompt_column, settings.completion_column)
    return load_rows(settings, tokenizer, raws, make, "judged response", texts)


def _label(columns: Mapping[str, Any], settings: JudgedSettings) -> float:
    name = settings.label_column
    if settings.binary:
        value = column(columns, name)
        if value not in (True, False, 0, 1):
            raise RowError(f"{name} must be true or false (or 1 or 0), got {value!r}")
        return float(value)
    value = number_column(columns, name)
    low, high = settings.label_range or (value, value)
    if not low <= value <= high:
        raise RowError(f"{name} must lie between {low:g} and {high:g}, got {value:g}")
    return value


def generate_judged(origin: Origin) -> Iterator[RawRow]:
    """Judged responses from a reasoning_gym task, for demos and tests: of each of `generate_pairs` one side, drawn by
    seed, label 1 for the right answer and 0 for the wrong one."""
    rng = random.Random(origin.seed + 1)
    for raw in generate_pairs(origin):
        if raw.columns is None:
            yield raw
            continue
        right = rng.random() < 0.5
        answer = raw.columns["chosen" if right else "rejected"]
        yield RawRow(raw.where, {"prompt": raw.columns["prompt"], "completion": answer, "label": int(right)})
