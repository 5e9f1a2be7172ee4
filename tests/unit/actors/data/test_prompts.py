"""Prompts: every source gives the same ids, bad rows are all named with their line, held-out questions stay out."""

import json
import subprocess
import sys
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from actors.data import DataError, PromptSettings, load_prompts, train_and_heldout
from tests.fixtures.tiny_model import make_tiny_tokenizer

ROWS = [{"prompt": "What is 1+1?", "answer": "2"}, {"prompt": "What is 2+2?", "answer": "4"}]
TEMPLATED = "<|im_start|>user\nWhat is 1+1?<|im_end|>\n<|im_start|>assistant\n"
ADDITION = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}


@pytest.fixture(scope="module")
def tokenizer():
    return make_tiny_tokenizer()


def write_lines(path: Path, rows) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def test_jsonl_parquet_and_datasets_directory_give_the_same_prompts(tmp_path, tokenizer):
    jsonl = write_lines(tmp_path / "p.jsonl", ROWS)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "p.parquet")
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "plain")
    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "splits")
    paths = [jsonl, *(str(tmp_path / name) for name in ("p.parquet", "plain", "splits"))]
    sources = [load_prompts(PromptSettings(path=path), tokenizer) for path in paths]
    assert tokenizer.decode(sources[0].rows[0].token_ids) == TEMPLATED
    for source in sources:
        assert [row.token_ids for row in source.rows] == [row.token_ids for row in sources[0].rows]
        assert source.rows[1].data == {"prompt": "What is 2+2?", "answer": "4"}
        assert source.fingerprint() == sources[0].fingerprint()


def test_a_split_the_directory_does_not_have_is_named_with_those_it_has(tmp_path, tokenizer):
    datasets.DatasetDict({"test": datasets.Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "d")
    with pytest.raises(DataError, match=r"no split 'train'; its splits are test"):
        load_prompts(PromptSettings(path=str(tmp_path / "d")), tokenizer)


def test_prompt_carries_row_as_id_position_as_group_and_the_other_columns(tmp_path, tokenizer):
    source = load_prompts(PromptSettings(path=write_lines(tmp_path / "p.jsonl", ROWS)), tokenizer)
    first, second = source.prompts([(1, 12), (0, 13)])
    assert (first.id, first.group, first.data["answer"]) == (1, 12, "4")
    assert (second.id, second.group, second.data["prompt"]) == (0, 13, "What is 1+1?")


def test_messages_and_system_prompt_are_templated_once(tmp_path, tokenizer):
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    own = [{"role": "system", "content": "own"}, {"role": "user", "content": "d"}]
    path = write_lines(tmp_path / "p.jsonl", [{"chat": chat}, {"chat": own}])
    source = load_prompts(PromptSettings(path=path, column="chat", system_prompt="S"), tokenizer)
    assert tokenizer.decode(source.rows[0].token_ids) == (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
        "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.decode(source.rows[1].token_ids).startswith("<|im_start|>system\nown<|im_end|>")
    assert source.rows[0].data["prompt"] == "c"
    assert source.rows[0].data["messages"][1:] == chat


def test_the_suffix_reaches_the_policy_and_not_the_rewards(tmp_path, tokenizer):
    path = write_lines(tmp_path / "p.jsonl", ROWS)
    row = load_prompts(PromptSettings(path=path, suffix=" Only the number."), tokenizer).rows[0]
    assert "user\nWhat is 1+1? Only the number.<|im_end|>" in tokenizer.decode(row.token_ids)
    assert row.data["prompt"] == "What is 1+1?"


def test_an_unreachable_hub_is_a_data_error_that_names_the_data_set(tokenizer, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"nobody/none\[train\]: cannot be loaded from the Hugging Face hub"):
        load_prompts(PromptSettings(hub_id="nobody/none"), tokenizer)


def test_a_subset_is_read_from_a_data_set_laid_out_as_on_the_hub_and_refused_for_a_file(tmp_path, tokenizer):
    write_lines(tmp_path / "easy.jsonl", ROWS)
    path = write_lines(tmp_path / "hard.jsonl", [{"prompt": "What is 77+88?", "answer": "165"}])
    configs = [f"- config_name: {name}\n  data_files: {name}.jsonl\n" for name in ("easy", "hard")]
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{''.join(configs)}---\n")
    rows = load_prompts(PromptSettings(hub_id=str(tmp_path), hub_config="hard"), tokenizer).rows
    assert [row.data["answer"] for row in rows] == ["165"]
    with pytest.raises(DataError, match="Config name is missing"):
        load_prompts(PromptSettings(hub_id=str(tmp_path)), tokenizer)
    with pytest.raises(DataError, match="the subset hard is of a hub data set and this one is on disk; remove"):
        load_prompts(PromptSettings(path=path, hub_config="hard"), tokenizer)


def test_plain_text_without_a_template(tmp_path, tokenizer):
    path = write_lines(tmp_path / "p.jsonl", ROWS)
    source = load_prompts(PromptSettings(path=path, chat_template=False), tokenizer)
    assert tokenizer.decode(source.rows[0].token_ids) == "What is 1+1?"
    bare = make_tiny_tokenizer()
    bare.chat_template = None
    with pytest.raises(ValueError, match="set chat_template: false"):
        load_prompts(PromptSettings(path=path), bare)


def test_all_bad_rows_are_named_at_once_with_file_and_line(tmp_path, tokenizer):
    good = {"prompt": "fine"}
    bad = [
        "{not json",
        "[1]",
        {"question": "x"},
        {"prompt": 3},
        {"prompt": " "},
        {"prompt": []},
        {"prompt": [{"role": "user"}]},
        {"prompt": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
    ]
    path = write_lines(tmp_path / "p.jsonl", [good, *bad])
    with pytest.raises(DataError) as caught:
        load_prompts(PromptSettings(path=path), tokenizer)
    reasons = dict(caught.value.problems)
    assert list(reasons) == [f"{path}:{line}" for line in range(2, 10)]
    wanted = [
        "not JSON",
        "got a list",
        "no column 'prompt'; the row has question",
        "got a number",
        "is empty",
        "is empty",
    ]
    for reason, part in zip(
        reasons.values(), [*wanted, "role and content", "ends with the assistant's turn"], strict=True
    ):
        assert part in reason
    assert str(caught.value).startswith(f"{path}: 8 problems\n  {path}:2: not JSON")


def test_twenty_bad_rows_are_listed_and_all_are_counted(tmp_path, tokenizer):
    path = write_lines(tmp_path / "p.jsonl", [{"prompt": ""}] * 23)
    with pytest.raises(DataError) as caught:
        load_prompts(PromptSettings(path=path), tokenizer)
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("23 problems") and lines[-1] == "  ... and 3 more" and len(lines) == 22
    assert len(caught.value.problems) == 23


def test_a_line_that_is_not_utf8_is_a_bad_row(tmp_path, tokenizer):
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'{"prompt": "ok"}\n{"prompt": "\xff"}\n')
    with pytest.raises(DataError, match=r"p.jsonl:2: not UTF-8"):
        load_prompts(PromptSettings(path=str(path)), tokenizer)


@pytest.mark.parametrize(("bound", "passes"), [(2, True), (1, False), (0.5, True), (0.49, False)])
def test_skip_invalid_bounds_bad_rows_by_count_or_share(tmp_path, tokenizer, bound, passes):
    path = write_lines(tmp_path / "p.jsonl", [*ROWS, "x", "y"])
    settings = PromptSettings(path=path, skip_invalid=bound)
    if passes:
        source = load_prompts(settings, tokenizer)
        assert (len(source), source.counts.read, source.counts.skipped) == (2, 4, 2)
    else:
        with pytest.raises(DataError, match=f"more than skip_invalid={bound} allows \\(1 of 4 rows\\)"):
            load_prompts(settings, tokenizer)


def test_overlong_prompts_are_refused_cut_from_the_left_or_dropped_and_counted(tmp_path, tokenizer):
    path = write_lines(tmp_path / "p.jsonl", [{"prompt": "abcdef"}, {"prompt": "xyz"}])
    plain = {"path": path, "chat_template": False, "max_tokens": 4}
    with pytest.raises(DataError, match=r"p.jsonl:1: prompt of 6 tokens, the window is 4; set overlong"):
        load_prompts(PromptSettings(**plain, skip_invalid=5), tokenizer)
    cut = load_prompts(PromptSettings(**plain, overlong="truncate_left"), tokenizer)
    assert [tokenizer.decode(row.token_ids) for row in cut.rows] == ["cdef", "xyz"]
    assert (cut.counts.truncated, cut.counts.dropped) == (1, 0)
    dropped = load_prompts(PromptSettings(**plain, overlong="drop"), tokenizer)
    assert [tokenizer.decode(row.token_ids) for row in dropped.rows] == ["xyz"]
    assert (dropped.counts.truncated, dropped.counts.dropped) == (0, 1)


def test_a_task_gives_questions_with_what_its_scorer_needs(tokenizer):
    source = load_prompts(PromptSettings(task="chain_sum", task_params=ADDITION, size=5, seed=3), tokenizer)
    again = load_prompts(PromptSettings(task="chain_sum", task_params=ADDITION, size=5, seed=3), tokenizer)
    data = source.rows[0].data
    assert len(source) == 5 and source.fingerprint() == again.fingerprint()
    assert data["prompt"] == data["question"] and data["task"] == "chain_sum" and data["task_params"] == ADDITION
    left, sign, right = data["metadata"]["expression"].split()
    assert int(data["answer"]) == int(left) + (int(right) if sign == "+" else -int(right))


def test_unknown_tasks_and_parameters_are_named(tokenizer):
    with pytest.raises(DataError, match=r"did you mean chain_sum\?"):
        load_prompts(PromptSettings(task="chain_sm"), tokenizer)
    with pytest.raises(DataError, match=r"do not fit the task: \{'terms': 2\}"):
        load_prompts(PromptSettings(task="chain_sum", task_params={"terms": 2}), tokenizer)


def test_heldout_questions_of_a_task_never_occur_in_training(tokenizer):
    # One-digit sums have few distinct questions, so both duplicates and overlap are certain.
    settings = PromptSettings(task="chain_sum", task_params=ADDITION, size=300)
    train, heldout = train_and_heldout(settings, 40, tokenizer)
    texts = [row.data["question"] for row in train.rows]
    assert len(heldout) == 40 == len({row.data["question"] for row in heldout.rows})
    assert len(texts) > len(set(texts)), "repeated questions keep their share"
    assert not set(texts) & {row.data["question"] for row in heldout.rows}
    assert train.counts.heldout > 0
    assert len(train) == 300 - train.counts.heldout
    with pytest.raises(DataError, match="distinct questions"):
        train_and_heldout(settings, 500, tokenizer)


def test_heldout_of_a_file_takes_every_copy_of_its_questions(tmp_path, tokenizer):
    asked = ("a", "b", " a", "c", "b", "d")
    rows = [{"prompt": text} for text in asked]
    settings = PromptSettings(path=write_lines(tmp_path / "p.jsonl", rows), seed=5)
    train, heldout = train_and_heldout(settings, 2, tokenizer)
    assert len(heldout) == 2
    assert [row.question for row in train.rows] == [t.strip() for t in asked if t.strip() not in heldout.questions]
    assert train.questions | heldout.questions == {"a", "b", "c", "d"}
    assert train_and_heldout(settings, 2, tokenizer)[1].questions == heldout.questions
    with pytest.raises(DataError, match="leaves nothing to train on: 4 distinct"):
        train_and_heldout(settings, 4, tokenizer)


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="exactly one of path, hub_id and task"):
        PromptSettings(path="x", task="y")
    with pytest.raises(ValueError, match="overlong must be one of"):
        PromptSettings(path="x", overlong="cut")
    for bad in (-1, 1.0, True):
        with pytest.raises(ValueError, match="skip_invalid"):
            PromptSettings(path="x", skip_invalid=bad)


def test_missing_and_unknown_files_are_named(tmp_path, tokenizer):
    with pytest.raises(DataError, match="no such file"):
        load_prompts(PromptSettings(path=str(tmp_path / "none.jsonl")), tokenizer)
    (tmp_path / "p.csv").write_text("x")
    with pytest.raises(DataError, match=r"unknown kind of file '.csv'"):
        load_prompts(PromptSettings(path=str(tmp_path / "p.csv")), tokenizer)
    (tmp_path / "p.parquet").write_text("x")
    with pytest.raises(DataError, match="not readable as Parquet"):
        load_prompts(PromptSettings(path=str(tmp_path / "p.parquet")), tokenizer)
    with pytest.raises(DataError, match="not a directory that `datasets` saved"):
        load_prompts(PromptSettings(path=str(tmp_path)), tokenizer)


def test_data_and_rewards_import_without_torch_ray_or_vllm():
    modules = (
        "actors.data, actors.rewards.runner, actors.rewards.scorer, actors.rewards.builtin, actors.models.pretrained"
    )
    code = f"import sys, {modules}; print([m for m in ('torch', 'ray', 'vllm', 'transformers') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
