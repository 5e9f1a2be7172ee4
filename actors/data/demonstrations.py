"""Demonstrations for supervised tuning: conversations as ids, with a mark on every token that the assistant wrote.

In: `DemonstrationSettings` and a tokenizer; rows hold a conversation (messages), or a prompt (text or messages) and a
completion. Out: a frozen `DemonstrationSource`. Every assistant turn is encoded apart, as generation would produce it,
and ends with its end-of-turn token. Left out: packing and the loss.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from actors.data.chat import Message, Tokenizer, messages_of, prompt_ids, require_template, turn_after
from actors.data.errors import DataError, Problems, RowError, check_skip_invalid
from actors.data.rows import Origin, RawRow, kind_of, read_rows


@dataclass(frozen=True, slots=True)
class DemonstrationSettings:
    """messages_column: whole conversations; else prompt_column and completion_column. max_tokens bounds a whole
    conversation; overlong: refuse or drop one that is longer (cut, it would teach to stop or to begin anywhere)."""

    origin: Origin
    messages_column: str | None = None
    prompt_column: str = "prompt"
    completion_column: str = "completion"
    system_prompt: str | None = None
    chat_template: bool = True
    max_tokens: int | None = None
    overlong: str = "refuse"
    skip_invalid: int | float = 0

    def __post_init__(self) -> None:
        check_skip_invalid(self.skip_invalid)
        if self.overlong not in ("refuse", "drop"):
            raise ValueError(f"overlong must be refuse or drop for demonstrations, got {self.overlong!r}")


@dataclass(frozen=True, slots=True)
class Demonstration:
    """prompt_tokens: everything before the first assistant turn. token_ids: the rest; trained[i]: token i is the
    assistant's."""

    id: int
    prompt_tokens: tuple[int, ...]
    token_ids: tuple[int, ...]
    trained: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class DemonstrationSource:
    """All rows of a source; rows[i].id == i. read = len(rows) + skipped + dropped."""

    name: str
    rows: tuple[Demonstration, ...]
    read: int
    skipped: int
    dropped: int

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> Demonstration:
        return self.rows[row]

    def fingerprint(self) -> str:
        """Hash of all token ids in order: a resumed run compares it, so that ids still mean the same rows."""
        h = hashlib.sha256()
        for row in self.rows:
            for ids in (row.prompt_tokens, row.token_ids, row.trained):
                h.update(np.array([len(ids), *ids], np.int32).tobytes())
        return h.hexdigest()


def load_demonstrations(settings: DemonstrationSettings, tokenizer: Tokenizer) -> DemonstrationSource:
    """Read, check, template and tokenise every row. DataError names all bad rows at once."""
    require_template(tokenizer, settings.chat_template)
    name = settings.origin.name
    problems = Problems(name, settings.skip_invalid)
    rows: list[Demonstration] = []
    read = dropped = 0
    for raw in read_rows(settings.origin):
        read += 1
        try:
            prompt, tokens, trained = conversation_ids(tokenizer, _messages(raw, settings), settings.chat_template)
        except RowError as error:
            problems.skip(raw.where, str(error))
            continue
        length, limit = len(prompt) + len(tokens), settings.max_tokens
        if limit is not None and length > limit:
            if settings.overlong == "drop":
                dropped += 1
            else:
                fix = "set overlong to drop, or enlarge the window"
                problems.refuse(raw.where, f"conversation of {length} tokens, the window is {limit}; {fix}")
            continue
        rows.append(Demonstration(len(rows), tuple(prompt), tuple(tokens), tuple(trained)))
    skipped = problems.settle(read)
    if not rows:
        raise DataError(name, [(name, f"no usable conversation among {read} rows")])
    return DemonstrationSource(name, tuple(rows), read, skipped, dropped)


def conversation_ids(
    tokenizer: Tokenizer, messages: Sequence[Message], chat_template: bool
) -> tuple[list[int], list[int], list[bool]]:
    """(prompt, the rest, which tokens of the rest the assistant wrote). RowError where it never speaks."""
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if not turns:
        raise RowError("no assistant message, so there is nothing to learn")
    if turns[0] == 0:
        raise RowError("the first message is the assistant's; begin with the user's")
    prompt = prompt_ids(tokenizer, messages[: turns[0]], chat_template)
    tokens: list[int] = []
    trained: list[bool] = []
    text = None
    for turn in turns:
        between, response, text = turn_after(tokenizer, messages[:turn], messages[turn]["content"], text, chat_template)
        tokens += [*between, *response]
        trained += [False] * len(between) + [True] * len(response)
    return prompt, tokens, trained


def _messages(raw: RawRow, settings: DemonstrationSettings) -> list[Message]:
    if raw.columns is None:
        raise RowError(raw.problem or "unreadable")
    if settings.messages_column is not None:
        column = settings.messages_column
        if not isinstance(raw.columns.get(column), list):
            raise RowError(f"{column} must be a list of messages, got {kind_of(raw.columns.get(column))}")
        return messages_of(column, raw.columns[column], settings.system_prompt)
    prompt = messages_of(settings.prompt_column, _value(raw.columns, settings.prompt_column), settings.system_prompt)
    completion = _value(raw.columns, settings.completion_column)
    if not isinstance(completion, str) or not completion.strip():
        raise RowError(f"{settings.completion_column} must be text that is not empty, got {kind_of(completion)}")
    return [*prompt, {"role": "assistant", "content": completion}]


def _value(columns: Mapping[str, Any], name: str) -> Any:
    if name not in columns:
        raise RowError(f"no column {name!r}; the row has {', '.join(columns) or 'none'}")
    return columns[name]
