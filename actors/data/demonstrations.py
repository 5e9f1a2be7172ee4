"""Demonstrations for supervised tuning: conversations as ids, with a mark on every token that the assistant wrote.

In: `DemonstrationSettings` and a tokenizer; rows hold a conversation (messages), or a prompt (text or messages) and a
completion. Out: `StoredRows` of `Demonstration`s. Every assistant turn is encoded apart, as generation would produce
it, and ends with its end-of-turn token. Left out: packing and the loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from actors.data.chat import messages_of, prompt_ids, turn_after
from actors.data.errors import RowError
from actors.data.rows import kind_of, read_rows
from actors.data.stored import StoredRows, StoredSettings, column, load_rows, text_column
from actors.data.tokenizer import Message, Tokenizer


@dataclass(frozen=True, slots=True)
class DemonstrationSettings(StoredSettings):
    """messages_column: whole conversations; else prompt_column and completion_column. overlong: refuse or drop (cut, a
    conversation would teach to stop or to begin anywhere)."""

    messages_column: str | None = None
    prompt_column: str = "prompt"
    completion_column: str = "completion"

    def __post_init__(self) -> None:
        StoredSettings.__post_init__(self)
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

    @property
    def responses(self) -> tuple[tuple[int, ...], ...]:
        return (self.token_ids,)

    @property
    def facts(self) -> Sequence[Sequence[float]]:
        return (self.trained,)


def load_demonstrations(settings: DemonstrationSettings, tokenizer: Tokenizer) -> StoredRows[Demonstration]:
    """Read, check, template and tokenise every row. DataError names all bad rows at once."""

    def make(number: int, columns: Mapping[str, Any]) -> Demonstration:
        prompt, tokens, trained = conversation_ids(
            tokenizer, _messages(columns, settings, number), settings.chat_template
        )
        return Demonstration(number, tuple(prompt), tuple(tokens), tuple(trained))

    whole = settings.messages_column
    texts = (settings.prompt_column, settings.completion_column) if whole is None else (whole,)
    return load_rows(settings, tokenizer, read_rows(settings.origin), make, "conversation", texts)


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


def _messages(columns: Mapping[str, Any], settings: DemonstrationSettings, number: int) -> list[Message]:
    name = settings.messages_column
    if name is not None:
        if not isinstance(columns.get(name), list):
            raise RowError(f"{name} must be a list of messages, got {kind_of(columns.get(name))}")
        return messages_of(name, columns[name], settings.system_prompt)
    prompt = messages_of(settings.prompt_column, column(columns, settings.prompt_column), settings.system_prompt)
    said = text_column(columns, settings.completion_column)
    if settings.origin.answer_formats:
        said = settings.origin.say(columns, said, number, "{answer}")
    return [*prompt, {"role": "assistant", "content": said}]
