"""What a chat request says is text: a message that spells a control token is refused.

In: a policy's directory, a request's JSON. Out: the policy's `Controls`, HTTP 400 naming the message and the token. The
engine's tokenizer would read `<|im_end|>` in a message as the token itself: a user, or a page that a tool has read,
could end its turn and speak as the system. Left out: /v1/completions, whose prompt the client writes whole, its
template's control tokens included; encoding such a message as text, for which the engine has no door.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from starlette.exceptions import HTTPException

from actors.data.control import Controls
from serve.policy import ServedPolicy, ServeInputError

NOT_IN_THE_PROMPT = frozenset({"stop", "bad_words", "structured_outputs", "chat_template"})
"""Fields of a chat request that may spell a control token: they shape what is sampled, and a request's own template,
where the engine takes one, is a template."""


def policy_controls(policy: ServedPolicy) -> Controls:
    """The control tokens of the served tokenizer. Raises ServeInputError."""
    from transformers import AutoTokenizer

    try:
        return Controls.of(AutoTokenizer.from_pretrained(policy.path))
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ServeInputError(
            f"the tokenizer in {policy.path} cannot be loaded ({reason}); add the tokenizer's files"
        ) from error


def refuse_control_tokens(body: Mapping[str, Any], controls: Controls) -> None:
    """HTTPException 400 where a text that becomes part of the prompt spells a control token: of the messages, the
    tools, the documents or the template's arguments, names of fields included."""
    for name, value in body.items():
        if name in NOT_IN_THE_PROMPT:
            continue
        places = (
            [(f"{name}[{i}]", item) for i, item in enumerate(value)] if isinstance(value, list) else [(name, value)]
        )
        for where, item in places:
            token = next(filter(None, map(controls.first, texts_in(item))), None)
            if token is not None:
                message = (
                    f"{where} spells {token}, a control token of this model, and only its chat template writes those"
                )
                raise HTTPException(400, f"{message}; write it otherwise")


def texts_in(value: Any) -> Iterator[str]:
    """Every text of a JSON value, also those that only the engine puts together: parts of one content are joined, and
    a tool call's arguments are JSON within JSON."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, list):
            waiting += value
            yield "".join(map(_said, value))
        elif isinstance(value, Mapping):
            waiting += [*value, *value.values()]
            waiting += [_parsed(text) for key, text in value.items() if key == "arguments" and isinstance(text, str)]


def _said(part: Any) -> str:
    """The text of one part of a message's content."""
    if isinstance(part, Mapping):
        return "".join(text for key, text in part.items() if key != "type" and isinstance(text, str))
    return part if isinstance(part, str) else ""


def _parsed(arguments: str) -> Any:
    """What the engine makes of them: where they are no JSON, nothing."""
    try:
        return json.loads(arguments)
    except (ValueError, RecursionError):
        return None
