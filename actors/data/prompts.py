"""Prompts: rows of templated ids with the columns that rewards need.

In: `PromptSettings` and a tokenizer. Out: a frozen `PromptSource`, whose rows become `Prompt`s by (row, group), and a
held-out twin that shares no question with it. All bad rows are named at once, with file and line. Left out: the order
in which rows are admitted (order.py).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from actors.data.chat import messages_of, prompt_ids, require_template
from actors.data.control import refuse_columns, refuse_settings
from actors.data.errors import DataError, Problems, RowError, check_skip_invalid
from actors.data.rows import Origin, RawRow, read_rows
from actors.data.stored import check_overlong
from actors.data.tokenizer import Message, Tokenizer
from actors.types import Prompt

HELDOUT_SEED_STEP = 1 << 30
"""reasoning_gym seeds item i with seed + i: held-out questions are drawn this far from the training ones."""


@dataclass(frozen=True, slots=True)
class PromptSettings:
    """Exactly one of path (JSONL, Parquet, `datasets` directory), hub_id and task (reasoning_gym).

    column: holds the prompt, text or chat messages; None means `prompt` (`question` for a task).
    size, seed: of a generated task. max_tokens: the window; None is no bound. overlong: what happens to a prompt
    beyond it: refuse, truncate_left (keep its last max_tokens tokens) or drop. skip_invalid: how many bad rows may be
    skipped, a count or a share. suffix: follows the last message in what the policy reads, such as an answer format;
    questions and the rewards' columns stay as the source has them.
    """

    path: str | None = None
    hub_id: str | None = None
    hub_config: str | None = None
    split: str = "train"
    task: str | None = None
    task_params: Mapping[str, Any] = field(default_factory=dict)
    size: int = 1000
    seed: int = 0
    column: str | None = None
    system_prompt: str | None = None
    suffix: str = ""
    chat_template: bool = True
    max_tokens: int | None = None
    overlong: str = "refuse"
    skip_invalid: int | float = 0

    def __post_init__(self) -> None:
        _ = self.origin
        check_skip_invalid(self.skip_invalid)
        check_overlong(self.overlong)

    @property
    def origin(self) -> Origin:
        return Origin(
            path=self.path,
            hub_id=self.hub_id,
            hub_config=self.hub_config,
            split=self.split,
            task=self.task,
            task_params=self.task_params,
            size=self.size,
            seed=self.seed,
        )

    @property
    def prompt_column(self) -> str:
        return self.column or ("question" if self.task else "prompt")


@dataclass(frozen=True, slots=True)
class LoadCounts:
    """What became of the rows: read = kept + skipped + dropped + duplicates + heldout (truncated ones are kept)."""

    read: int
    skipped: int = 0
    truncated: int = 0
    dropped: int = 0
    duplicates: int = 0
    heldout: int = 0


@dataclass(frozen=True, slots=True)
class PromptRow:
    """question: the conversation's text, whitespace folded, by which rows are told apart; where: file:line."""

    token_ids: tuple[int, ...]
    data: Mapping[str, Any]
    question: str
    where: str


@dataclass(frozen=True, slots=True)
class PromptSource:
    """All prompts of a source. A row's number is its `Prompt.id`: the same settings and data give the same ids."""

    name: str
    rows: tuple[PromptRow, ...]
    counts: LoadCounts

    def __len__(self) -> int:
        return len(self.rows)

    def prompt(self, row: int, group: int) -> Prompt:
        return Prompt(id=row, token_ids=self.rows[row].token_ids, group=group, data=self.rows[row].data)

    def prompts(self, taken: Iterable[tuple[int, int]]) -> list[Prompt]:
        """The prompts of (row, group) pairs as `PromptOrder.take` gives them."""
        return [self.prompt(row, group) for row, group in taken]

    @property
    def questions(self) -> frozenset[str]:
        return frozenset(row.question for row in self.rows)

    def fingerprint(self) -> str:
        """Hash of all token ids in order: a resumed run compares it, so that ids still mean the same prompts."""
        h = hashlib.sha256()
        for row in self.rows:
            h.update(np.array([len(row.token_ids), *row.token_ids], np.int32).tobytes())
        return h.hexdigest()

    def distinct(self) -> PromptSource:
        """Without rows whose question an earlier row asks."""
        first = {row.question: row for row in reversed(self.rows)}
        rows = tuple(row for row in self.rows if first[row.question] is row)
        return replace(self, rows=rows, counts=replace(self.counts, duplicates=len(self.rows) - len(rows)))

    def without(self, questions: frozenset[str]) -> PromptSource:
        """Without rows that ask one of these questions."""
        rows = tuple(row for row in self.rows if row.question not in questions)
        return replace(self, rows=rows, counts=replace(self.counts, heldout=len(self.rows) - len(rows)))


def load_prompts(settings: PromptSettings, tokenizer: Tokenizer) -> PromptSource:
    """Read, check, template and tokenise every row. DataError names all bad rows at once."""
    require_template(tokenizer, settings.chat_template)
    origin = settings.origin
    refuse_settings(tokenizer, origin.name, system_prompt=settings.system_prompt, suffix=settings.suffix)
    problems = Problems(origin.name, settings.skip_invalid)
    rows: list[PromptRow] = []
    read = truncated = dropped = 0
    for raw in read_rows(origin):
        read += 1
        try:
            row = _prompt_row(raw, settings, tokenizer)
        except RowError as error:
            problems.skip(raw.where, str(error))
            continue
        limit = settings.max_tokens
        if limit is not None and len(row.token_ids) > limit:
            if settings.overlong == "drop":
                dropped += 1
                continue
            if settings.overlong == "refuse":
                fix = "set overlong to truncate_left or drop, or enlarge the window"
                problems.refuse(row.where, f"prompt of {len(row.token_ids)} tokens, the window is {limit}; {fix}")
                continue
            truncated += 1
            row = replace(row, token_ids=row.token_ids[-limit:])
        rows.append(row)
    skipped = problems.settle(read)
    if not rows:
        raise DataError(origin.name, [(origin.name, f"no usable prompt among {read} rows")])
    return PromptSource(origin.name, tuple(rows), LoadCounts(read, skipped, truncated, dropped))


def _prompt_row(raw: RawRow, settings: PromptSettings, tokenizer: Tokenizer) -> PromptRow:
    if raw.columns is None:
        raise RowError(raw.problem or "unreadable")
    column = settings.prompt_column
    if column not in raw.columns:
        raise RowError(f"no column {column!r}; the row has {', '.join(map(str, raw.columns)) or 'none'}")
    value = raw.columns[column]
    refuse_columns(tokenizer, raw.columns, (column,))
    messages = messages_of(column, value, settings.system_prompt)
    if messages[-1]["role"] == "assistant":
        raise RowError(f"{column} ends with the assistant's turn; it must end where the response begins")
    last = {**messages[-1], "content": messages[-1]["content"] + settings.suffix}
    ids = prompt_ids(tokenizer, [*messages[:-1], last], settings.chat_template)
    if not ids:
        raise RowError(f"{column} has no tokens")
    extra = {name: v for name, v in raw.columns.items() if name != column or settings.task}
    data = {**extra, "prompt": _last_user_text(messages)}
    if isinstance(value, list) or settings.system_prompt:
        data["messages"] = messages
    return PromptRow(tuple(ids), data, question_text(messages), raw.where)


def question_text(messages: list[Message]) -> str:
    """The conversation without system prompts, whitespace folded: equal text means the same question."""
    return " ".join(" ".join(m["content"] for m in messages if m["role"] != "system").split())


def _last_user_text(messages: list[Message]) -> str:
    spoken = [m["content"] for m in messages if m["role"] == "user"] or [messages[-1]["content"]]
    return spoken[-1]


def train_and_heldout(
    settings: PromptSettings, heldout_size: int, tokenizer: Tokenizer
) -> tuple[PromptSource, PromptSource]:
    """A training source and a held-out one of `heldout_size` distinct questions, none of which is in training.

    A task's held-out questions are generated from another seed; from any other source they are drawn by a seeded choice
    of distinct questions. Every row that asks one of them leaves training. Other rows stay, repeated questions too: to
    drop those would change the mix that the source has (a task's easy questions are few, so they repeat).
    """
    if heldout_size < 1:
        raise ValueError(f"heldout_size must be at least 1, got {heldout_size}")
    train = load_prompts(settings, tokenizer)
    if settings.task:
        heldout = _task_heldout(settings, heldout_size, tokenizer)
    else:
        heldout = _chosen_heldout(train, heldout_size, settings.seed)
    rest = train.without(heldout.questions)
    if not rest.rows:
        reason = f"all {len(train)} training prompts are held out; lower heldout_size or enlarge the source"
        raise DataError(train.name, [(train.name, reason)])
    return rest, heldout


def _task_heldout(settings: PromptSettings, heldout_size: int, tokenizer: Tokenizer) -> PromptSource:
    """Distinct questions from a far seed; more are generated while duplicates leave too few (8 times at most)."""
    far = replace(settings, seed=settings.seed + HELDOUT_SEED_STEP)

    def distinct(size: int) -> PromptSource:
        return load_prompts(replace(far, size=size), tokenizer).distinct()

    found = distinct(heldout_size)
    for oversample in (2, 4, 8):
        if len(found) >= heldout_size:
            break
        found = distinct(heldout_size * oversample)
    if len(found) < heldout_size:
        reason = f"only {len(found)} distinct questions in {heldout_size * 8}; lower heldout_size or widen task_params"
        raise DataError(found.name, [(found.name, reason)])
    return PromptSource(found.name, found.rows[:heldout_size], LoadCounts(read=heldout_size))


def _chosen_heldout(source: PromptSource, heldout_size: int, seed: int) -> PromptSource:
    distinct = source.distinct()
    if heldout_size >= len(distinct):
        reason = f"heldout_size {heldout_size} leaves nothing to train on: {len(distinct)} distinct questions"
        raise DataError(source.name, [(source.name, reason)])
    chosen = sorted(random.Random(seed).sample(range(len(distinct)), heldout_size))
    rows = tuple(distinct.rows[i] for i in chosen)
    return PromptSource(distinct.name, rows, LoadCounts(read=heldout_size))
