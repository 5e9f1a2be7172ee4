"""The chat template, applied once: messages to token ids.

In: a tokenizer (a transformers one, loaded by the caller), a column's value. Out: ids of a prompt, or of a prompt and
a response whose ids continue the prompt's exactly as the policy would have continued them; RowError where a text spells
a control token, which only the template writes. Nothing here is re-tokenised later. Left out: reading rows, and any
cut to a window.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2.exceptions import TemplateError

from actors.data.control import refuse_messages
from actors.data.errors import RowError
from actors.data.rows import kind_of
from actors.data.tokenizer import Message, Tokenizer

STAND_IN = "stand-in for a response"
NO_FRAME = ("", "")


def require_template(tokenizer: Tokenizer, chat_template: bool) -> None:
    """ValueError when a chat template is asked for and the tokenizer has none."""
    if chat_template and not tokenizer.chat_template:
        raise ValueError("the tokenizer has no chat template; set chat_template: false to use prompts as plain text")


def messages_of(column: str, value: Any, system_prompt: str | None = None) -> list[Message]:
    """A text or a list of {role, content} as messages, the system prompt first unless the row has its own.

    RowError when it is neither, or is empty.
    """
    if isinstance(value, str):
        if not value.strip():
            raise RowError(f"{column} is empty")
        messages = [{"role": "user", "content": value}]
    elif isinstance(value, list):
        if not value:
            raise RowError(f"{column} is empty")
        messages = [_message(f"{column}[{i}]", message) for i, message in enumerate(value)]
    else:
        raise RowError(f"{column} must be text or a list of messages, got {kind_of(value)}")
    if system_prompt and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system_prompt})
    return messages


def _message(where: str, value: Any) -> Message:
    if not isinstance(value, Mapping) or "role" not in value or "content" not in value:
        raise RowError(f"{where} must be an object with role and content, got {kind_of(value)}")
    role, content = value["role"], value["content"]
    if not isinstance(role, str) or not isinstance(content, str):
        raise RowError(f"{where}: role and content must be text, got {kind_of(role)} and {kind_of(content)}")
    if not content.strip():
        raise RowError(f"{where}.content is empty")
    return {"role": role, "content": content}


def prompt_ids(tokenizer: Tokenizer, messages: Sequence[Message], chat_template: bool) -> list[int]:
    """The prompt as the policy sees it, ending where its response begins."""
    refuse_messages(tokenizer, messages)
    if not chat_template:
        if len(messages) != 1:
            raise RowError("chat messages and system prompts need chat_template: true")
        return list(tokenizer.encode(messages[0]["content"]))
    try:
        ids = tokenizer.apply_chat_template(
            list(messages), tokenize=True, add_generation_prompt=True, return_dict=False
        )
    except TemplateError as error:
        raise RowError(f"the chat template refuses these messages ({error})") from error
    return list(ids)


def response_ids(
    tokenizer: Tokenizer, messages: Sequence[Message], response: str, chat_template: bool, to_end: bool = False
) -> list[int]:
    """The response's ids after `prompt_ids(messages)`, up to and with its end-of-turn token, or (to_end) to the end of
    what the template writes: prompt and response are then exactly the ids of the whole conversation, as a reward model
    reads it.

    The response's text is encoded apart from the prompt's, as generation would produce it: tokens never merge across
    the boundary. What the template writes after the end-of-turn token (often a line break) is cut off, as the engine
    stops there; where it writes none, the tokenizer's EOS is appended.
    """
    refuse_messages(tokenizer, [*messages, {"role": "assistant", "content": response}])
    if not chat_template:
        return _ended(tokenizer, response, response, NO_FRAME)[0]
    text = _templated_response(tokenizer, messages, response)
    if to_end:
        return _to_end(tokenizer, messages, response, text)
    return _ended(tokenizer, text, response, _frame(tokenizer, messages))[0]


def _to_end(tokenizer: Tokenizer, messages: Sequence[Message], response: str, text: str) -> list[int]:
    own = list(tokenizer.encode(text, add_special_tokens=False))
    chat = [*messages, {"role": "assistant", "content": response}]
    whole = list(tokenizer.apply_chat_template(chat, tokenize=True, return_dict=False))
    if [*prompt_ids(tokenizer, messages, True), *own] != whole:
        raise RowError("the response's first token merges with the prompt's last, so they cannot be told apart")
    return own


def turn_after(
    tokenizer: Tokenizer, messages: Sequence[Message], response: str, before: str | None, chat_template: bool
) -> tuple[list[int], list[int], str]:
    """(ids since the last turn, ids of this one, the text so far). before: the text up to and with the last turn of
    the assistant's, None at the first. RowError where the template writes earlier messages anew."""
    refuse_messages(tokenizer, [*messages, {"role": "assistant", "content": response}])
    if not chat_template:
        if before is not None:
            raise RowError("a conversation of several turns needs chat_template: true")
        return [], _ended(tokenizer, response, response, NO_FRAME)[0], response
    prompt = _templated(tokenizer, messages, add_generation_prompt=True)
    between: list[int] = []
    if before is not None:
        if not prompt.startswith(before):
            raise RowError("the chat template rewrites earlier turns, so the conversation has no one sequence of ids")
        between = list(tokenizer.encode(prompt[len(before) :], add_special_tokens=False))
    text = _templated_response(tokenizer, messages, response)
    ids, text = _ended(tokenizer, text, response, _frame(tokenizer, messages))
    return between, ids, prompt + text


def _ended(tokenizer: Tokenizer, text: str, response: str, frame: tuple[str, str]) -> tuple[list[int], str]:
    """(ids, text) of a response, cut after its end-of-turn token; EOS appended to the ids where it has none. frame:
    what the template writes before and after a response's own text."""
    before, after = frame
    own = text[len(before) : len(text) - len(after)]
    if not (text.startswith(before) and text.endswith(after) and own.strip() == response.strip()):
        raise RowError("the chat template rewrites the response's text, so the pair cannot be scored")
    ends = [after.index(token) + len(token) for token in tokenizer.all_special_tokens if token in after]
    if ends:
        text = text[: len(before) + len(own) + min(ends)]
        return list(tokenizer.encode(text, add_special_tokens=False)), text
    if tokenizer.eos_token_id is None:
        raise RowError("neither the chat template nor the tokenizer says how a response ends; set the tokenizer's EOS")
    return [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id], text


def _frame(tokenizer: Tokenizer, messages: Sequence[Message]) -> tuple[str, str]:
    """What the template writes around a response's text, told by a text that stands in for it: a response that looks
    like a part of the template, such as "end" in `<|im_end|>`, is then never taken for it."""
    before, found, after = _templated_response(tokenizer, messages, STAND_IN).partition(STAND_IN)
    if not found:
        raise RowError("the chat template rewrites the response's text, so the pair cannot be scored")
    return before, after


def _templated(tokenizer: Tokenizer, messages: Sequence[Message], add_generation_prompt: bool) -> str:
    try:
        return tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except TemplateError as error:
        raise RowError(f"the chat template refuses these messages ({error})") from error


def _templated_response(tokenizer: Tokenizer, messages: Sequence[Message], response: str) -> str:
    prompt = _templated(tokenizer, messages, add_generation_prompt=True)
    whole = _templated(tokenizer, [*messages, {"role": "assistant", "content": response}], add_generation_prompt=False)
    if not whole.startswith(prompt):
        raise RowError("the chat template does not keep its prompt before a response, so the pair cannot be scored")
    return whole[len(prompt) :]
