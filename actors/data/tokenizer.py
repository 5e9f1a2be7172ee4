"""What is needed of a tokenizer, and what a message is. Types only: no file of this room is imported here.

In: nothing. Out: `Tokenizer`, which transformers' tokenizers are, and `Message`. Left out: loading one (the caller
does).
"""

from __future__ import annotations

from typing import Any, Protocol

Message = dict[str, str]
"""A turn of a conversation: its role and its content."""


class Tokenizer(Protocol):
    """What is needed of transformers' PreTrainedTokenizerBase."""

    chat_template: Any
    eos_token_id: int | None
    unk_token_id: int | None

    @property
    def all_special_tokens(self) -> list[str]: ...

    @property
    def is_fast(self) -> bool: ...

    @property
    def added_tokens_decoder(self) -> Any: ...

    @property
    def backend_tokenizer(self) -> Any: ...

    def apply_chat_template(self, conversation: list[Message], **options: Any) -> Any: ...

    def encode(self, text: str, add_special_tokens: bool = True, **options: Any) -> list[int]: ...

    def convert_tokens_to_ids(self, tokens: str) -> Any: ...
