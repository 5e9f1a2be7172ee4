"""Demonstrations: which tokens are the assistant's, and that they are the ids that generation would have produced."""

import json

import pytest

from actors.data.demonstrations import DemonstrationSettings, conversation_ids, load_demonstrations
from actors.data.errors import DataError
from actors.data.rows import Origin
from tests.fixtures.tiny_model import make_tiny_tokenizer

USER, ASSISTANT = "user", "assistant"


@pytest.fixture(scope="module")
def tokenizer():
    return make_tiny_tokenizer()


def say(*turns):
    return [{"role": role, "content": text} for role, text in turns]


def load(tmp_path, tokenizer, *rows, **settings):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_demonstrations(DemonstrationSettings(Origin(path=str(path)), **settings), tokenizer)


def test_only_the_assistants_tokens_are_trained_each_turn_with_its_end(tokenizer):
    chat = say((USER, "a"), (ASSISTANT, "bc"), (USER, "d"), (ASSISTANT, "e"))
    prompt, tokens, trained = conversation_ids(tokenizer, chat, True)
    assert tokenizer.decode(prompt) == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
    mine = [token for token, mark in zip(tokens, trained, strict=True) if mark]
    assert tokenizer.decode(mine) == "bc<|im_end|>e<|im_end|>"
    whole = tokenizer.apply_chat_template(chat, tokenize=True, return_dict=False)
    assert [*prompt, *tokens] == list(whole)[: len(prompt) + len(tokens)]
    assert tokenizer.decode(list(whole)[len(prompt) + len(tokens) :]) == "\n"


@pytest.mark.parametrize("text", ["e", "end", "im_end|>", "<|im_end|", "the end", "|"])
def test_a_response_is_not_looked_for_inside_the_token_that_ends_it(tokenizer, text):
    _, tokens, _ = conversation_ids(tokenizer, say((USER, "a"), (ASSISTANT, text)), True)
    assert tokenizer.decode(tokens) == f"{text}<|im_end|>"


def test_prompt_and_completion_columns_are_one_turn(tmp_path, tokenizer):
    source = load(tmp_path, tokenizer, {"prompt": "a", "completion": "b"}, system_prompt="S")
    (row,) = source.rows
    assert tokenizer.decode(list(row.prompt_tokens)).startswith("<|im_start|>system\nS")
    assert tokenizer.decode(list(row.token_ids)) == "b<|im_end|>" and all(row.trained)


def test_without_a_template_a_completion_follows_its_prompt_and_ends(tmp_path, tokenizer):
    source = load(tmp_path, tokenizer, {"prompt": "a", "completion": " b"}, chat_template=False)
    assert tokenizer.decode(list(source[0].token_ids)) == " b<|im_end|>"


def test_all_bad_rows_are_named_at_once(tmp_path, tokenizer):
    rows = [
        {"chat": say((USER, "a"), (ASSISTANT, "b"))},
        {"chat": "text"},
        {"chat": say((USER, "a"))},
        {"chat": say((ASSISTANT, "a"))},
        {"chat": say((USER, "a"), (ASSISTANT, "b" * 50))},
    ]
    with pytest.raises(DataError) as caught:
        load(tmp_path, tokenizer, *rows, messages_column="chat", max_tokens=60)
    reasons = "\n".join(f"{where} {reason}" for where, reason in caught.value.problems)
    for number, words in (
        (2, "must be a list of messages, got text"),
        (3, "no assistant message"),
        (4, "the first message is the assistant's"),
        (5, "the window is 60"),
    ):
        assert f"rows.jsonl:{number}" in reasons and words in reasons
    kept = load(tmp_path, tokenizer, *rows, messages_column="chat", max_tokens=60, overlong="drop", skip_invalid=3)
    assert (len(kept), kept.read, kept.skipped, kept.dropped) == (1, 5, 3, 1)


def test_the_fingerprint_knows_ids_and_marks(tmp_path, tokenizer):
    one = load(tmp_path, tokenizer, {"prompt": "a", "completion": "b"})
    assert one.fingerprint() == load(tmp_path, tokenizer, {"prompt": "a", "completion": "b"}).fingerprint()
    assert one.fingerprint() != load(tmp_path, tokenizer, {"prompt": "a", "completion": "c"}).fingerprint()
