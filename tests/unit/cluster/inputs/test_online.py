"""From config to data and rewards: where rows come from, what the window is, what is held out."""

import json

import pytest

from actors.data import DataError, PreferencePair, StoredRows
from cluster.inputs import online as inputs
from cluster.inputs.stored import load_stored_inputs, stored_settings
from tests.fixtures.configs import DPO, GRPO, config
from tests.fixtures.tiny_model import make_tiny_tokenizer

ADDITION = "data.reasoning_gym={task: chain_sum, size: 60, seed: 3, params: {min_terms: 2, max_terms: 2}}"


@pytest.fixture(scope="module")
def tokenizer():
    return make_tiny_tokenizer()


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"data.path={path}"


def test_a_prompt_may_take_what_the_longest_response_leaves_of_the_window():
    assert inputs.prompt_window(config(GRPO)) == 64 - 16
    assert inputs.prompt_window(config(GRPO, "evaluation.max_tokens=8")) == 64 - 16
    assert inputs.prompt_window(config(GRPO, "evaluation.max_tokens=40")) == 64 - 40


@pytest.mark.parametrize(
    ("path", "hub"),
    [
        ("trl-lib/DeepMath-103K", True),
        ("imdb", True),
        ("data/prompts.jsonl", False),
        ("./owner/name", False),
        ("a/b/c", False),
        ("prompts.parquet", False),
    ],
)
def test_a_name_is_a_hub_id_unless_it_is_written_as_a_file(path, hub):
    settings = inputs.prompt_settings(config(GRPO, f"data.path={path}"))
    assert (settings.hub_id, settings.path) == ((path, None) if hub else (None, path))


def test_a_subset_reaches_the_reader():
    assert inputs.prompt_settings(config(GRPO, "data.path=a/b", "data.subset=all")).hub_config == "all"
    assert stored_settings(config(DPO, "data.path=a/b", "data.subset=all")).origin.hub_config == "all"


def test_what_exists_here_is_read_here_whatever_its_name(tmp_path, monkeypatch):
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert inputs.prompt_settings(config(GRPO, "data.path=owner/name")).path == "owner/name"


def test_the_task_s_seed_and_size_come_from_its_own_section_and_files_use_the_run_s():
    task = inputs.prompt_settings(config(GRPO, "data.path=null", ADDITION, "seed=9"))
    assert (task.task, task.size, task.seed, task.column) == ("chain_sum", 60, 3, None)
    assert inputs.prompt_settings(config(GRPO, "seed=9")).seed == 9


def test_the_messages_column_is_read_where_it_is_given():
    assert inputs.prompt_settings(config(GRPO, "data.messages_column=chat")).prompt_column == "chat"
    assert inputs.prompt_settings(config(GRPO, "data.prompt_column=text")).prompt_column == "text"


def test_the_suffix_reaches_the_policy_and_not_the_rewards(tmp_path, tokenizer):
    rows = write_rows(tmp_path / "p.jsonl", [{"prompt": "1+1?", "answer": "2"}])
    (row,) = inputs.load_inputs(config(GRPO, rows, "data.suffix=' Be short.'"), tokenizer).train.rows
    text = tokenizer.decode(list(row.token_ids))
    assert text == "<|im_start|>user\n1+1? Be short.<|im_end|>\n<|im_start|>assistant\n"
    assert (row.data["prompt"], row.question) == ("1+1?", "1+1?")


def test_held_out_prompts_share_no_question_with_training_and_are_cut_to_what_is_evaluated(tokenizer):
    one_digit = ADDITION.replace("max_terms: 2}", "max_terms: 2, min_digits: 1, max_digits: 2}")
    window = ["model.max_length=256"]
    found = inputs.load_inputs(config(GRPO, "data.path=null", one_digit, "data.heldout=20", *window), tokenizer)
    assert len(found.heldout) == 20
    assert not found.train.questions & found.heldout.questions
    some = config(GRPO, "data.path=null", one_digit, "data.heldout=20", "evaluation.prompts=5", *window)
    assert inputs.load_inputs(some, tokenizer).heldout.rows == found.heldout.rows[:5]


def test_without_held_out_rows_all_prompts_train(tmp_path, tokenizer):
    rows = write_rows(tmp_path / "p.jsonl", [{"prompt": "1+1?"}, {"prompt": "2+2?"}])
    found = inputs.load_inputs(config(GRPO, rows), tokenizer)
    assert (len(found.train), found.heldout) == (2, None)


def pair(prompt, chosen="a", rejected="b"):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def test_held_out_pairs_take_every_pair_of_their_prompts_out_of_training(tmp_path, tokenizer):
    pairs = [pair("p"), pair("q"), pair("p", "c"), pair("r"), pair("q", "d")]
    found = load_stored_inputs(config(DPO, write_rows(tmp_path / "p.jsonl", pairs), "data.heldout=1"), tokenizer)
    held = found.heldout[0].prompt_tokens
    same = sum(tokenizer.decode(list(held)).split("\n")[1].startswith(row["prompt"]) for row in pairs)
    assert (len(found.heldout), len(found.train), found.read) == (1, 5 - same, 5)
    assert all(found.train[i].prompt_tokens != held and found.train[i].id == i for i in range(len(found.train)))


def test_the_held_out_pairs_are_drawn_by_the_run_s_seed(tmp_path, tokenizer):
    rows = write_rows(tmp_path / "p.jsonl", [pair(f"question {i}") for i in range(20)])

    def held(seed):
        loaded = load_stored_inputs(config(DPO, rows, "data.heldout=5", f"seed={seed}"), tokenizer)
        return [loaded.heldout[i].prompt_tokens for i in range(5)]

    assert held(1) == held(1)
    assert held(1) != held(2)


def test_holding_out_every_prompt_is_refused(tmp_path, tokenizer):
    rows = write_rows(tmp_path / "p.jsonl", [pair("p"), pair("q"), pair("q", "c")])
    with pytest.raises(DataError, match=r"data\.heldout 2 leaves nothing to train on: 2 distinct prompts; lower it"):
        load_stored_inputs(config(DPO, rows, "data.heldout=2"), tokenizer)


def test_kto_needs_a_second_prompt_on_either_side(tmp_path, tokenizer):
    same = write_rows(tmp_path / "same.jsonl", [pair("p"), pair("p", "c")])
    with pytest.raises(DataError, match="the training rows have one prompt; add others"):
        load_stored_inputs(config(DPO, same, "algorithm={name: kto}"), tokenizer)
    three = write_rows(tmp_path / "three.jsonl", [pair("p"), pair("q"), pair("r")])
    with pytest.raises(DataError, match="the held-out rows have one prompt"):
        load_stored_inputs(config(DPO, three, "algorithm={name: kto}", "data.heldout=1"), tokenizer)
    assert len(load_stored_inputs(config(DPO, same), tokenizer).train) == 2


def test_other_pairs_have_another_fingerprint(tmp_path, tokenizer):
    def fingerprint(name, rows):
        given = config(DPO, write_rows(tmp_path / name, rows))
        return load_stored_inputs(given, tokenizer).train.fingerprint()

    first = fingerprint("a.jsonl", [pair("p"), pair("q")])
    assert first == fingerprint("b.jsonl", [pair("p"), pair("q")])
    assert first != fingerprint("c.jsonl", [pair("q"), pair("p")])


def test_the_same_ids_cut_elsewhere_are_other_pairs():
    def fingerprint(*cut):
        return StoredRows("x", (PreferencePair(0, *cut),), read=1).fingerprint()

    assert fingerprint((1, 2), (3,), (4,)) != fingerprint((1,), (2, 3), (4,))


def test_reward_functions_become_specs_in_the_config_s_order():
    found = inputs.reward_specs(
        config(
            GRPO,
            "reward.functions={b: {function: math_verify, weight: 0.5, args: {key: gold}, timeout_s: 3}, "
            "a: {function: 'm:f', batched: true}}",
        )
    )
    assert [(s.name, s.function, s.weight, s.timeout_s, s.batched) for s in found] == [
        ("b", "math_verify", 0.5, 3.0, None),
        ("a", "m:f", 1.0, 10.0, True),
    ]
    assert found[0].args == {"key": "gold"}
