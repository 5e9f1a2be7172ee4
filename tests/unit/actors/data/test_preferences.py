"""Preference pairs: the prompt is the templated prompt, responses end where the turn ends, bad pairs are named."""

import json

import pytest

from actors.data import DataError, PreferenceSettings, PromptSettings, load_preferences, load_prompts
from actors.data.preferences import generate_pairs
from actors.data.rows import Origin
from tests.fixtures.tiny_model import make_tiny_tokenizer

PAIR = {"prompt": "2+3?", "chosen": "5", "rejected": "It is 6."}


@pytest.fixture(scope="module")
def tokenizer():
    return make_tiny_tokenizer()


def write_lines(path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def load_one(tmp_path, tokenizer, row, **settings):
    path = write_lines(tmp_path / "pairs.jsonl", [row])
    return load_preferences(PreferenceSettings(Origin(path=path), **settings), tokenizer).rows[0]


def test_prompt_is_exactly_the_one_a_rollout_would_get_and_responses_end_with_the_turn(tmp_path, tokenizer):
    pair = load_one(tmp_path, tokenizer, PAIR)
    path = write_lines(tmp_path / "prompts.jsonl", [{"prompt": "2+3?"}])
    assert pair.prompt_tokens == load_prompts(PromptSettings(path=path), tokenizer).rows[0].token_ids
    assert tokenizer.decode(pair.chosen_tokens) == "5<|im_end|>"
    assert tokenizer.decode(pair.rejected_tokens) == "It is 6.<|im_end|>"
    assert pair.chosen_tokens[-1] == tokenizer.eos_token_id


def test_without_an_end_of_turn_in_the_template_the_eos_is_appended(tmp_path, tokenizer):
    pair = load_one(tmp_path, tokenizer, PAIR, chat_template=False)
    assert tokenizer.decode(pair.prompt_tokens) == "2+3?"
    assert tokenizer.decode(pair.chosen_tokens) == "5<|im_end|>"


def test_most_of_a_special_token_quoted_in_the_response_does_not_cut_it(tmp_path, tokenizer):
    pair = load_one(tmp_path, tokenizer, {**PAIR, "chosen": "a<|im_end|b"})
    assert tokenizer.decode(pair.chosen_tokens) == "a<|im_end|b<|im_end|>"


def test_responses_may_be_messages_or_whole_conversations(tmp_path, tokenizer):
    question = {"role": "user", "content": "2+3?"}
    answers = [{"role": "assistant", "content": PAIR[side]} for side in ("chosen", "rejected")]
    plain = load_one(tmp_path, tokenizer, PAIR)
    separate = {"prompt": [question], "chosen": [answers[0]], "rejected": [answers[1]]}
    whole = {"chosen": [question, answers[0]], "rejected": [question, answers[1]]}
    for row in (separate, whole, {**whole, "prompt": "2+3?"}):
        assert load_one(tmp_path, tokenizer, row) == plain


def test_the_system_prompt_stands_before_the_prompt(tmp_path, tokenizer):
    pair = load_one(tmp_path, tokenizer, PAIR, system_prompt="S")
    assert tokenizer.decode(pair.prompt_tokens).startswith("<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n2+3?")


def test_all_bad_pairs_are_named_at_once_with_file_and_line(tmp_path, tokenizer):
    user = {"role": "user", "content": "q"}
    other = {"role": "user", "content": "r"}
    answer = {"role": "assistant", "content": "a"}
    bad = [
        {**PAIR, "rejected": " 5 "},
        {**PAIR, "chosen": ""},
        {"prompt": "x", "chosen": "y"},
        {**PAIR, "rejected": 6},
        {"chosen": "a", "rejected": "b"},
        {"chosen": [user, answer], "rejected": [other, answer]},
        {**PAIR, "chosen": [answer, user]},
    ]
    path = write_lines(tmp_path / "pairs.jsonl", [PAIR, *bad])
    with pytest.raises(DataError) as caught:
        load_preferences(PreferenceSettings(Origin(path=path)), tokenizer)
    wanted = [
        "chosen and rejected are equal",
        "chosen is empty",
        "no column 'rejected'",
        "rejected must be text or a list of messages, got a number",
        "no column 'prompt', and chosen and rejected are not whole conversations",
        "begin with different conversations",
        "chosen must be one assistant message after the prompt",
    ]
    assert [where for where, _ in caught.value.problems] == [f"{path}:{line}" for line in range(2, 9)]
    for (_, reason), part in zip(caught.value.problems, wanted, strict=True):
        assert part in reason
    skipped = load_preferences(PreferenceSettings(Origin(path=path), skip_invalid=7), tokenizer)
    assert (len(skipped), skipped.read, skipped.skipped) == (1, 8, 7)


def test_overlong_pairs_are_refused_dropped_or_lose_the_beginning_of_the_prompt(tmp_path, tokenizer):
    # Plain text: prompt of 4 tokens, chosen 1 + EOS, rejected 8 + EOS: 13 tokens with the longer side.
    path = write_lines(tmp_path / "pairs.jsonl", [PAIR, {**PAIR, "rejected": "6"}])
    plain = {"origin": Origin(path=path), "chat_template": False, "max_tokens": 11}
    with pytest.raises(DataError, match=r"pairs.jsonl:1: pair of 13 tokens, the window is 11"):
        load_preferences(PreferenceSettings(**plain), tokenizer)
    dropped = load_preferences(PreferenceSettings(**plain, overlong="drop"), tokenizer)
    assert (len(dropped), dropped.dropped, dropped.rows[0].id) == (1, 1, 0)
    cut = load_preferences(PreferenceSettings(**plain, overlong="truncate_left"), tokenizer)
    assert tokenizer.decode(cut.rows[0].prompt_tokens) == "3?" and cut.truncated == 1


def test_a_task_makes_pairs_of_a_right_and_a_wrong_answer(tokenizer):
    params = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    settings = PreferenceSettings(Origin(task="chain_sum", task_params=params, size=20, seed=1))
    source = load_preferences(settings, tokenizer)
    assert len(source) == 20 and source == load_preferences(settings, tokenizer)
    for pair in source.rows:
        expression = tokenizer.decode(pair.prompt_tokens).split("problem: ")[1].split(" =")[0]
        left, sign, right = expression.split()
        total = int(left) + (int(right) if sign == "+" else -int(right))
        assert tokenizer.decode(pair.chosen_tokens) == f"The answer is {total}.<|im_end|>"
        wrong = tokenizer.decode(pair.rejected_tokens).removeprefix("The answer is ").removesuffix(".<|im_end|>")
        assert 1 <= abs(int(wrong) - total) <= 9


def test_pairs_are_not_generated_from_a_file():
    with pytest.raises(ValueError, match=r"from a reasoning_gym task, and pairs\.jsonl is none"):
        next(generate_pairs(Origin(path="pairs.jsonl")))
