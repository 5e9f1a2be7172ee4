"""Control tokens: which spellings a tokenizer reads as one, and which text holds such a spelling.

In: a tokenizer, texts. Out: `Controls`; RowError or DataError for a row or a setting whose text spells a control token.
Only the chat template writes control tokens: a text that spells one would end a turn, begin another or pass for
padding. Rows are refused, for such a row is nearly always a transcript that was saved with its control tokens, and
tuned on as text it would teach the policy to spell them. Left out: texts that cannot be refused (as_text.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from jinja2.exceptions import TemplateError

from actors.data.errors import DataError, RowError

if TYPE_CHECKING:
    from actors.data.tokenizer import Message, Tokenizer

BRACKETED = re.compile(r"\W.*\w.*\W", re.DOTALL)
"""A name between signs, such as <|im_end|> or [INST]: written for no other end than to be a token."""
READ_AS = "which the tokenizer reads as a control token and not as text"
FIX = "take it out (the chat template writes control tokens by itself)"


@dataclass(frozen=True, slots=True)
class Controls:
    """The control tokens of one tokenizer, by their spellings:

    - its special tokens, named (EOS, BOS, PAD, UNK) or not;
    - of its other added tokens those with which the chat template frames a turn: DeepSeek's `<｜User｜>` is not marked
      special and yet begins a turn. Not so tags that come in pairs, such as `<think>` and `</think>` or `<tool_call>`:
      people write them in responses, and the tokens that they become are the ones that are meant.

    A special token that is an ordinary word of the vocabulary (a pad_token of "!") is no control token: text says it
    anyway. normalized: spellings in the normal form that `normalizer` gives a text, of tokens looked for there.
    """

    spellings: tuple[str, ...]
    pattern: re.Pattern[str] | None = None
    normalized: re.Pattern[str] | None = None
    normalizer: Any = None

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Controls:
        """The tokenizer's control tokens. They are found once and kept: add no tokens afterwards."""
        found = _KNOWN.get(tokenizer)
        if found is None:
            found = _KNOWN[tokenizer] = _controls(tokenizer)
        return found

    def first(self, text: str) -> str | None:
        """The first control token that the text spells."""
        found = self.pattern.search(text) if self.pattern else None
        if found is None and self.normalized is not None:
            found = self.normalized.search(self.normalizer.normalize_str(text))
        return found[0] if found else None

    def replaced(self, text: str, stand_in: Callable[[str], str]) -> str:
        """The text with `stand_in(spelling)` for each spelling; in its normal form where only that spells one."""
        if self.pattern is not None:
            text = self.pattern.sub(lambda found: stand_in(found[0]), text)
        if self.normalized is not None:
            normal = self.normalizer.normalize_str(text)
            if self.normalized.search(normal):
                text = self.normalized.sub(lambda found: stand_in(found[0]), normal)
        return text


_KNOWN: WeakKeyDictionary[Any, Controls] = WeakKeyDictionary()


def _controls(tokenizer: Tokenizer) -> Controls:
    vocabulary = tokenizer.added_tokens_decoder
    if not isinstance(vocabulary, Mapping):  # mistral-common's: a method that raises, for it reads no text as a token
        return Controls(())
    added = list(vocabulary.values())
    special = {token.content for token in added if token.special} | set(tokenizer.all_special_tokens)
    others = {token.content for token in added} - special
    spellings = {s for s in special if s and not _is_a_word(tokenizer, s)} | _frames(tokenizer, others)
    moved = [token.content for token in added if token.normalized and token.content in spellings]
    normalizer = tokenizer.backend_tokenizer.normalizer if moved and tokenizer.is_fast else None
    normalized = set(map(normalizer.normalize_str, moved)) - {""} if normalizer is not None else set()
    return Controls(tuple(sorted(spellings)), _any_of(spellings), _any_of(normalized), normalizer)


def _any_of(spellings: Collection[str]) -> re.Pattern[str] | None:
    """The longest of those that begin at a place, as the tokenizer takes them."""
    return re.compile("|".join(map(re.escape, sorted(spellings, key=len, reverse=True)))) if spellings else None


def _is_a_word(tokenizer: Tokenizer, spelling: str) -> bool:
    """Whether the spelling, as text, is that very token. One in brackets never is, whatever a unigram model makes
    of it."""
    if BRACKETED.fullmatch(spelling):
        return False
    ids = tokenizer.encode(spelling, add_special_tokens=False, split_special_tokens=True)
    return list(ids) == [tokenizer.convert_tokens_to_ids(spelling)]


def _frames(tokenizer: Tokenizer, added: Collection[str]) -> set[str]:
    """The added tokens that the chat template writes around turns, but for pairs of tags."""
    if not added or not tokenizer.chat_template:
        return set()
    chat = [{"role": role, "content": "text"} for role in ("system", "user", "assistant", "user")]
    text = ""
    for messages in (chat, chat[1:], chat[1:2]):
        try:
            text += tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except TemplateError:  # it takes no system prompt, or one turn alone
            continue
    names = [spelling.replace("/", "") for spelling in added]
    return {s for s in added if s in text and BRACKETED.fullmatch(s) and names.count(s.replace("/", "")) == 1}


def refuse_settings(tokenizer: Tokenizer, source: str, **texts: str | None) -> None:
    """DataError where one of the settings that become part of every row (by key of `data`) spells a control token."""
    controls = Controls.of(tokenizer)
    found = {name: controls.first(text) for name, text in texts.items() if text}
    problems = [(f"data.{name}", f"spells {token}, {READ_AS}; {FIX}") for name, token in found.items() if token]
    if problems:
        raise DataError(source, problems)


def refuse_columns(tokenizer: Tokenizer, columns: Mapping[str, Any], names: Sequence[str]) -> None:
    """RowError naming the place where one of these columns, text or messages, spells a control token. What else may be
    wrong with a column is not looked at."""
    for name in names:
        for where, text in _texts(name, columns.get(name)):
            refuse_text(tokenizer, where, text)


def refuse_messages(tokenizer: Tokenizer, messages: Sequence[Message]) -> None:
    """RowError where a message as the template gets it spells a control token, by its role or its content."""
    for message in messages:
        refuse_text(tokenizer, "a role", message["role"])
        refuse_text(tokenizer, f"what the {message['role']} says", message["content"])


def refuse_text(tokenizer: Tokenizer, where: str, text: str) -> None:
    """RowError where the text spells a control token."""
    token = Controls.of(tokenizer).first(text)
    if token is not None:
        raise RowError(f"{where} spells {token}, {READ_AS}; {FIX}, or let data.skip_invalid pass such rows over")


def _texts(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """(place, text) of a column that is text or a list of messages."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, list):
        for i, message in enumerate(value):
            for key in ("role", "content"):
                if isinstance(message, Mapping) and isinstance(message.get(key), str):
                    yield f"{name}[{i}].{key}", message[key]
