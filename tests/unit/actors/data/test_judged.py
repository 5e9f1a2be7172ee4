"""Judged responses: labels are checked, and a reward model's ids are exactly those it will be asked to score."""

import json

import pytest

from actors.data import DataError, PreferenceSettings, load_preferences
from actors.data.batches import judged_batch, mismatched_batch, pair_batch, partners
from actors.data.demonstrations import DemonstrationSettings, load_demonstrations
from actors.data.judged import JudgedSettings, load_judged
from actors.data.rows import Origin
from tests.fixtures.tiny_model import make_tiny_tokenizer

ROW = {"prompt": "2+3?", "completion": "5", "label": True}


@pytest.fixture(scope="module")
def tokenizer():
    return make_tiny_tokenizer()


def load(tmp_path, tokenizer, *rows, **settings):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_judged(JudgedSettings(Origin(path=str(path)), **settings), tokenizer)


def test_a_row_is_a_prompt_a_response_and_a_label(tmp_path, tokenizer):
    source = load(tmp_path, tokenizer, ROW, {**ROW, "label": 0})
    assert [row.label for row in source.rows] == [1.0, 0.0]
    assert tokenizer.decode(source[0].response_tokens) == "5<|im_end|>"
    other = load(tmp_path, tokenizer, {**ROW, "label": False}, {**ROW, "label": 0})
    assert source.fingerprint() != other.fingerprint()


@pytest.mark.parametrize(
    ("row", "settings", "reason"),
    [
        ({**ROW, "label": 0.5}, {}, "label must be true or false (or 1 or 0), got 0.5"),
        ({**ROW, "label": "yes"}, {}, "label must be true or false"),
        ({**ROW, "label": True}, {"binary": False}, "label must be a finite number, got True"),
        ({**ROW, "label": 6}, {"binary": False, "label_range": (1, 5)}, "label must lie between 1 and 5, got 6"),
        ({**ROW, "completion": " "}, {}, "completion is empty"),
        ({"prompt": "a", "label": 1}, {}, "no column 'completion'"),
        ({"prompt": "a", "completion": "b"}, {}, "no column 'label'"),
    ],
)
def test_a_bad_row_is_named_with_its_reason(tmp_path, tokenizer, row, settings, reason):
    good = {**ROW, "label": 1} if settings.get("binary", True) else {**ROW, "label": 2}
    with pytest.raises(DataError) as caught:
        load(tmp_path, tokenizer, good, row, **settings)
    ((where, said),) = caught.value.problems
    assert where.endswith("rows.jsonl:2") and reason in said


def test_to_the_template_s_end_prompt_and_response_are_the_whole_conversation(tmp_path, tokenizer):
    (row,) = load(tmp_path, tokenizer, ROW, to_template_end=True).rows
    chat = [{"role": "user", "content": "2+3?"}, {"role": "assistant", "content": "5"}]
    whole = tokenizer.apply_chat_template(chat, tokenize=True, return_dict=False)
    assert [*row.prompt_tokens, *row.response_tokens] == list(whole)


def test_a_task_makes_right_and_wrong_answers_with_their_labels(tokenizer):
    params = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    origin = Origin(task="chain_sum", task_params=params, size=30, seed=1)
    source = load_judged(JudgedSettings(origin), tokenizer)
    pairs = load_preferences(PreferenceSettings(origin), tokenizer)
    assert 5 < sum(row.label for row in source.rows) < 25
    for row, pair in zip(source.rows, pairs.rows, strict=True):
        assert row.response_tokens == (pair.chosen_tokens if row.label else pair.rejected_tokens)


def test_margins_are_read_where_their_column_is_named(tmp_path, tokenizer):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c", "gap": 1.5}) + "\n")
    origin = Origin(path=str(path))
    assert load_preferences(PreferenceSettings(origin), tokenizer)[0].margin == 0.0
    assert load_preferences(PreferenceSettings(origin, margin_column="gap"), tokenizer)[0].margin == 1.5
    with pytest.raises(DataError, match="no column 'margin'"):
        load_preferences(PreferenceSettings(origin, margin_column="margin"), tokenizer)


def test_a_partner_is_the_next_row_with_another_prompt():
    assert partners([(1,), (1,), (2,), (3,), (3,)]) == [2, 2, 3, 0, 0]
    assert partners([(1,), (2,), (1,)]) == [1, 2, 1]
    with pytest.raises(ValueError, match="all prompts are the same"):
        partners([(1,), (1,)])


def test_batches_hold_each_row_at_its_position(tmp_path, tokenizer):
    rows = load(tmp_path, tokenizer, ROW, {**ROW, "prompt": "q", "completion": "other"}).rows
    batch = judged_batch([(rows[1], 7), (rows[0], 9)])
    assert batch.groups.tolist() == [7, 9] and batch.prompt_ids.tolist() == [1, 0]
    assert tuple(batch.response_of(0)) == rows[1].response_tokens
    crossed = mismatched_batch([(rows[0], 3)], [rows[1]])
    assert tuple(crossed.prompt_of(0)) == rows[0].prompt_tokens
    assert tuple(crossed.response_of(0)) == rows[1].response_tokens
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}) + "\n")
    (pair,) = load_preferences(PreferenceSettings(Origin(path=str(path))), tokenizer).rows
    both = pair_batch([(pair, 4)])
    assert both.sample_indices.tolist() == [0, 1] and len(both.groups) == 1


def test_a_task_s_answers_are_said_as_the_format_has_it(tokenizer):
    params = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    origin = Origin(task="chain_sum", task_params=params, size=4, seed=1, answer_formats=("So {answer}!",))
    (pair, *_) = load_preferences(PreferenceSettings(origin), tokenizer).rows
    columns = {"prompt_column": "question", "completion_column": "answer"}
    (row, *_) = load_demonstrations(DemonstrationSettings(origin, **columns), tokenizer).rows
    assert row.token_ids == pair.chosen_tokens
    assert tokenizer.decode(row.token_ids).startswith("So ")
    assert tokenizer.decode(pair.rejected_tokens).endswith("!<|im_end|>")
    with pytest.raises(ValueError, match=r"must hold \{answer\}"):
        Origin(task="chain_sum", answer_formats=("So!",))


def test_formats_take_turns_and_may_name_what_the_task_tells_of_an_entry(tokenizer):
    params = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    formats = ("{expression} = {answer}", "It is {answer}.")
    origin = Origin(task="chain_sum", task_params=params, size=4, seed=1, answer_formats=formats)
    columns = {"prompt_column": "question", "completion_column": "answer"}
    rows = load_demonstrations(DemonstrationSettings(origin, **columns), tokenizer).rows
    said = [tokenizer.decode(row.token_ids) for row in rows]
    assert [" = " in text for text in said] == [True, False, True, False]
    question = tokenizer.decode(rows[0].prompt_tokens)
    assert said[0].split(" = ")[0] in question, "the expression is the question's"


def test_a_pair_may_be_about_form_alone(tokenizer):
    params = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    form = {"answer_formats": ("{expression} = {answer}",), "rejected_format": "The answer is {answer}."}
    origin = Origin(task="chain_sum", task_params=params, size=4, seed=1, **form)
    for pair in load_preferences(PreferenceSettings(origin), tokenizer).rows:
        chosen, rejected = (tokenizer.decode(side).split("<|im_end|>")[0] for side in pair.responses)
        assert " = " in chosen and rejected == f"The answer is {chosen.split(' = ')[1]}."


def test_a_name_that_the_task_does_not_tell_is_a_bad_row_with_those_it_does(tokenizer):
    origin = Origin(task="chain_sum", size=2, answer_formats=("{expresion} = {answer}",))
    with pytest.raises(DataError, match=r"cannot be filled in \('expresion'\); an entry has .*\{expression\}"):
        load_preferences(PreferenceSettings(origin), tokenizer)
