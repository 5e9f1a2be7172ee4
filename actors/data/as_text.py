"""Text encoded as text where it cannot be refused: what a judge, a reward model or `raylign chat` reads.

A policy may spell `<|im_end|>` with ordinary tokens, and decoded and encoded again that would be the token itself: a
response could end its own turn and write the judge's verdict. In: a tokenizer, messages or texts. Out: ids in which
only the template's control tokens are control tokens. A text that spells none gets exactly the ids that the tokenizer
gives it. Left out: rows, which are refused (control.py).

How: each spelling becomes one private-use character while the template is rendered; the rendered text is cut there,
and the spelling's own ids as text take the character's place. An added token cuts the text at the same places, so the
rest has the ids that it has beside the token itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from actors.data.control import Controls

if TYPE_CHECKING:
    from actors.data.tokenizer import Message, Tokenizer

PRIVATE = range(0xE000, 0xF900)
"""Unicode's private use area: characters that mean nothing by themselves."""


def chat_ids(tokenizer: Tokenizer, messages: Sequence[Message], add_generation_prompt: bool = False) -> list[int]:
    """Ids of a whole conversation, or of one up to where the response begins; every message is text."""
    texts, marks = masked(tokenizer, [part for m in messages for part in (m["role"], m["content"])])
    chat = [{"role": role, "content": content} for role, content in zip(texts[::2], texts[1::2], strict=True)]
    return templated_ids(tokenizer, chat, marks, add_generation_prompt)


def plain_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a text without a template, in the frame (BOS, EOS) that the tokenizer puts around any."""
    (text,), marks = masked(tokenizer, [text])
    if not marks:
        return list(tokenizer.encode(text))
    bare, framed = list(tokenizer.encode("a", add_special_tokens=False)), list(tokenizer.encode("a"))
    at = next(i for i in range(len(framed)) if framed[i : i + len(bare)] == bare)
    return [*framed[:at], *_ids(tokenizer, text, marks), *framed[at + len(bare) :]]


def masked(tokenizer: Tokenizer, texts: Sequence[str], beside: str = "") -> tuple[list[str], dict[str, str]]:
    """(the texts with a character of their own for each control token's spelling, the spelling of each character).
    beside: what else will stand in the text that the template makes of them."""
    controls = Controls.of(tokenizer)
    if not any(map(controls.first, texts)):
        return list(texts), {}
    taken = set("".join((*texts, beside, str(tokenizer.chat_template))))
    free = (chr(code) for code in PRIVATE if chr(code) not in taken)
    characters: dict[str, str] = {}

    def stand_in(spelling: str) -> str:
        if spelling not in characters:
            characters[spelling] = next(free)
        return characters[spelling]

    changed = [controls.replaced(text, stand_in) for text in texts]
    return changed, {character: spelling for spelling, character in characters.items()}


def templated_ids(
    tokenizer: Tokenizer, messages: Sequence[Message], marks: Mapping[str, str], add_generation_prompt: bool = False
) -> list[int]:
    """Ids of messages whose texts `masked` has made safe. What else they hold is the caller's own template, which may
    write control tokens."""
    options = {"add_generation_prompt": add_generation_prompt}
    if not marks:
        return list(tokenizer.apply_chat_template(list(messages), tokenize=True, return_dict=False, **options))
    return _ids(tokenizer, tokenizer.apply_chat_template(list(messages), tokenize=False, **options), marks)


def _ids(tokenizer: Tokenizer, text: str, marks: Mapping[str, str]) -> list[int]:
    ids: list[int] = []
    for piece in re.split(f"([{''.join(marks)}])", text):
        if piece in marks:
            ids += spelled_ids(tokenizer, marks[piece])
        elif piece:
            ids += tokenizer.encode(piece, add_special_tokens=False)
    return ids


def spelled_ids(tokenizer: Tokenizer, spelling: str) -> list[int]:
    """A control token's spelling as text: as the tokenizer reads it with its special tokens off; where it still finds
    the token (one that is not marked special, or a unigram model's own piece), without the whole before it."""
    controls = {tokenizer.convert_tokens_to_ids(each) for each in Controls.of(tokenizer).spellings}
    controls.discard(tokenizer.unk_token_id)  # a character that the vocabulary lacks is no forgery
    for pieces in ([spelling], [spelling[:1], spelling[1:]], list(spelling)):
        ids = [
            token
            for piece in pieces
            for token in tokenizer.encode(piece, add_special_tokens=False, split_special_tokens=True)
        ]
        if controls.isdisjoint(ids):
            return ids
    raise ValueError(f"the tokenizer has no way to write {spelling!r} as text, so a text with it cannot be encoded")
