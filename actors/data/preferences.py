"""Preference pairs for DPO and reward models: one prompt, a chosen and a rejected response, all as ids.

In: `PreferenceSettings` and a tokenizer; rows hold the prompt (text or messages) and both responses (text, messages,
or whole conversations that begin with the prompt). Out: `StoredRows` of `PreferencePair`s; the prompt's ids are exactly
the templated prompt, each response ends with its end-of-turn token. Left out: padding and batching.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from actors.data.chat import messages_of
from actors.data.errors import RowError
from actors.data.rows import Origin, RawRow, create_task, kind_of, read_rows, read_task, said_as
from actors.data.stored import StoredRows, StoredSettings, branch_ids, load_rows, number_column
from actors.data.tokenizer import Message, Tokenizer


@dataclass(frozen=True, slots=True)
class PreferenceSettings(StoredSettings):
    """prompt_column may be missing from rows whose chosen and rejected are whole conversations with the same beginning.
    margin_column: by how much chosen is better, a number (reward models; None: no margins). A task makes pairs: see
    `generate_pairs`."""

    prompt_column: str = "prompt"
    chosen_column: str = "chosen"
    rejected_column: str = "rejected"
    margin_column: str | None = None


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """id: row in the source. Responses end with the end-of-turn token and never include the prompt."""

    id: int
    prompt_tokens: tuple[int, ...]
    chosen_tokens: tuple[int, ...]
    rejected_tokens: tuple[int, ...]
    margin: float = 0.0

    @property
    def responses(self) -> tuple[tuple[int, ...], ...]:
        return (self.chosen_tokens, self.rejected_tokens)

    @property
    def facts(self) -> Sequence[Sequence[float]]:
        return ((self.margin,),)


def load_preferences(settings: PreferenceSettings, tokenizer: Tokenizer) -> StoredRows[PreferencePair]:
    """Read, check, template and tokenise every pair. DataError names all bad rows at once."""

    def make(number: int, columns: Mapping[str, Any]) -> PreferencePair:
        messages, chosen, rejected = _split_row(columns, settings)
        if chosen.strip() == rejected.strip():
            raise RowError("chosen and rejected are equal, so the pair says nothing")
        prompt, chosen_ids, rejected_ids = branch_ids(tokenizer, messages, (chosen, rejected), settings)
        margin = 0.0 if settings.margin_column is None else number_column(columns, settings.margin_column)
        return PreferencePair(number, prompt, chosen_ids, rejected_ids, margin)

    raws = generate_pairs(settings.origin) if settings.origin.task else read_rows(settings.origin)
    texts = (settings.prompt_column, settings.chosen_column, settings.rejected_column)
    return load_rows(settings, tokenizer, raws, make, "pair", texts)


def _split_row(columns: Mapping[str, Any], settings: PreferenceSettings) -> tuple[list[Message], str, str]:
    """(prompt messages, chosen text, rejected text)."""
    names = (settings.chosen_column, settings.rejected_column)
    missing = [name for name in names if name not in columns]
    if missing:
        raise RowError(f"no column {' and '.join(map(repr, missing))}; the row has {', '.join(columns) or 'none'}")
    sides = [columns[name] for name in names]
    if columns.get(settings.prompt_column) is not None:
        prompt = messages_of(settings.prompt_column, columns[settings.prompt_column])
    else:
        prompt = _shared_beginning(sides, settings)
    texts = [_response_text(name, side, prompt) for name, side in zip(names, sides, strict=True)]
    if settings.system_prompt and prompt[0]["role"] != "system":
        prompt = [{"role": "system", "content": settings.system_prompt}, *prompt]
    return prompt, texts[0], texts[1]


def _shared_beginning(sides: Sequence[Any], settings: PreferenceSettings) -> list[Message]:
    """The prompt of a row that has none of its own: what both conversations say before their last message."""
    if not all(isinstance(side, list) and len(side) > 1 for side in sides):
        name = settings.prompt_column
        raise RowError(f"no column {name!r}, and chosen and rejected are not whole conversations that hold the prompt")
    chosen, rejected = sides
    if chosen[:-1] != rejected[:-1]:
        raise RowError("chosen and rejected begin with different conversations, so they share no prompt")
    return messages_of(settings.chosen_column, chosen[:-1])


def _response_text(column: str, value: Any, prompt: list[Message]) -> str:
    if isinstance(value, str):
        if not value.strip():
            raise RowError(f"{column} is empty")
        return value
    if not isinstance(value, list):
        raise RowError(f"{column} must be text or a list of messages, got {kind_of(value)}")
    messages = messages_of(column, value)
    if messages[: len(prompt)] == prompt:
        messages = messages[len(prompt) :]
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        raise RowError(f"{column} must be one assistant message after the prompt, got {len(messages)} messages")
    return messages[0]["content"]


PLAIN_ANSWER = "The answer is {answer}."


def generate_pairs(origin: Origin) -> Iterator[RawRow]:
    """Pairs from a reasoning_gym task, for demos and tests.

    chosen: "The answer is X." (or the origin's answer_formats) with the right answer; rejected: the right answer in the
    origin's rejected_format, or else the same with a wrong one: for a whole number one that is off by 1 to 9, else
    another question's answer that the task scores lower. An entry for which no wrong answer is found in 20 tries is a
    bad row.
    """
    if origin.task is None:
        raise ValueError(f"pairs are generated from a reasoning_gym task, and {origin.name} is none")
    rows = list(read_task(origin.task, origin))
    task = create_task(origin.task, origin.task_params or {}, size=1, seed=origin.seed)
    rng = random.Random(origin.seed)
    for number, (where, entry) in enumerate(rows):
        right = str(entry["answer"])
        try:
            chosen = origin.say(entry, right, number, PLAIN_ANSWER)
            if origin.rejected_format is not None:
                rejected = said_as(origin.rejected_format, entry, right)
            elif wrong := _wrong_answer(task, entry, [other for _, other in rng.choices(rows, k=20)], rng):
                rejected = origin.say(entry, wrong, number, PLAIN_ANSWER)
            else:
                raise RowError("no wrong answer found for this entry; choose another task")
        except RowError as error:
            yield RawRow(where, None, str(error))
        else:
            yield RawRow(where, {"chosen": chosen, "rejected": rejected, "prompt": entry["question"]})


def _wrong_answer(task: Any, entry: Mapping[str, Any], others: Sequence[Mapping], rng: random.Random) -> str | None:
    right = str(entry["answer"])
    if right.lstrip("-").isdecimal():
        return str(int(right) + rng.choice((-1, 1)) * rng.randint(1, 9))
    best = task.score_answer(right, entry)
    for other in others:
        answer = str(other["answer"])
        if answer != right and task.score_answer(answer, entry) < best:
            return answer
    return None
