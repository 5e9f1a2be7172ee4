"""`check` on a tiny model: what is wrong is found before a worker starts; what only this machine lacks is apart."""

import io
import json
import shutil

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from cluster.commands.check import check, problems, run_directory_note
from cluster.config import ConfigError, load_config
from cluster.inspect.examine import examine
from cluster.inspect.machine import GIB, Machine
from cluster.inspect.model import count_parameters, facts_by_config, facts_by_name, find_model
from cluster.inspect.report import print_report, runs_on
from cluster.run.directory import RunDirectory
from tests.fixtures.configs import DPO, GRPO, config
from tests.fixtures.tiny_model import make_tiny_model

LARGE = Machine(cpus=4, memory=64 * GIB, available=64 * GIB, gpus=())
ROWS = [{"prompt": f"What is {i}+1?", "answer": str(i + 1)} for i in range(6)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def given(tmp_path, model):
    """Overrides of a config that has no problem; the rows stand in rows.jsonl."""
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return [f"model.path={model}", f"data.path={tmp_path / 'rows.jsonl'}", "model.max_length=128"]


def look(given, *overrides, machine=LARGE):
    return examine(config(GRPO, *given, *overrides), machine=machine)


def lines(found):
    return [str(problem) for problem in found]


def test_a_good_config_has_no_problem_and_its_report_is_complete(given):
    found = look(given, "data.heldout=2")
    assert found.problems == []
    # 100 x 128 embedding, shared with the head; 2 layers of 128 x (128 + 64 + 64 + 128) attention, 3 x 128 x 256
    # feed-forward and 2 norms of 128; one last norm.
    assert (found.facts.parameters, found.facts.origin) == (12_800 + 2 * (49_152 + 98_304 + 256) + 128, "files")
    assert (found.facts.head_dim, found.facts.vocabulary, found.facts.positions) == (32, 100, 1024)
    assert (found.data.rows["read"], found.data.rows["to train on"], found.data.rows["held out"]) == (6, 4, 2)
    assert found.data.rows["questions shared by both"] == 0
    assert len(found.data.samples) == 3
    sample = found.data.samples[0]
    assert sample.text.startswith("<|im_start|>user\nWhat is ")
    assert sample.text.endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert sample.tokens == len(found.tokenizer(sample.text)["input_ids"])
    assert sample.columns["answer"] in {row["answer"] for row in ROWS}


def test_an_adapter_s_target_that_the_model_lacks_is_told(given):
    """peft adapts those it finds and says nothing of the others."""
    good = look(given, "model.lora={targets: [q_proj, layers.0.mlp.up_proj]}")
    assert good.problems == []
    wrong = look(given, "model.lora={targets: [q_proj, c_attn, proj]}")
    ends = "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"
    assert lines(wrong.problems) == [
        f"model.lora.targets: the model has no linear layer named {target}; its layers' names end in {ends}"
        for target in ("c_attn", "proj")
    ]


def test_rewards_are_tried_on_the_data_s_own_answer_and_on_ignorance(given):
    found = look(given)
    assert (found.rewards.answered, found.rewards.ignorant) == ({"correct": 1.0}, {"correct": 0.0})


def test_every_problem_is_found_in_one_pass(given, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a"}\n{"question": "b"}\nnot json\n')
    found = look(
        given,
        "rollout.kv_cache_gb=0.00001",
        "model.max_length=2000",
        "reward.functions.other={function: exact_mach}",
    )
    rows = tmp_path / "rows.jsonl"
    assert lines(found.wrong) == [
        "model.max_length: must be at most the model's 1024 positions, got 2000",
        # 2 layers x 2 heads x 32 x 2 (key, value) x 2 bytes = 512 bytes a token; 0.00001 GB are 10,737 bytes.
        "rollout.kv_cache_gb: 1e-05 GB hold 20 tokens of this model, fewer than one sequence of model.max_length "
        "(2000); "
        "give 0.01 or more",
        f"{rows}:2: no column 'prompt'; the row has question",
        f"{rows}:3: not JSON (Expecting value at column 1)",
        "reward.functions: 'other' (exact_mach): 'exact_mach' is no built-in reward, and not module:function or "
        "path/file.py:function; did you mean exact_match?",
    ]


def test_a_reward_that_never_scores_is_a_problem_named_with_its_error(given, tmp_path):
    (tmp_path / "mine.py").write_text("def strict(prompt, response, data):\n    return data['gold']\n")
    found = look(given, f"reward.functions.mine={{function: '{tmp_path}/mine.py:strict'}}")
    (line,) = lines(found.wrong)
    assert line.startswith("reward.functions.mine: scored none of 6 trial responses; the first: reward 'mine'")
    assert "KeyError: 'gold'" in line


def test_a_reward_that_scores_some_responses_is_no_problem(given, tmp_path):
    text = "def some(prompt, response, data):\n    return float(response)\n"
    (tmp_path / "mine.py").write_text(text)
    found = look(given, f"reward.functions.mine={{function: '{tmp_path}/mine.py:some'}}")
    assert found.problems == []
    assert found.rewards.ignorant["mine"] is None
    assert found.rewards.answered["mine"] > 0


def test_a_prompt_past_the_window_is_refused_with_its_line(given, tmp_path):
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": "x" * 100, "answer": "y"}) + "\n")
    # 16 of the 128 positions are the response's; the template adds 28 tokens, a character is one token.
    (line,) = lines(look(given).wrong)
    assert line.startswith(f"{tmp_path / 'rows.jsonl'}:7: prompt of ")
    assert "the window is 112; set overlong to truncate_left or drop" in line
    counted = look(given, "data.overlong=drop")
    assert (counted.problems, counted.data.rows["dropped as too long"]) == ([], 1)


def test_a_model_that_is_nowhere_is_wrong_and_one_on_a_hub_is_only_missing_here(given):
    assert lines(look(given, "model.path=./no/model").wrong) == [
        "model.path: there is no model directory ./no/model; give one, a hub id (owner/name) or package:NAME/FILE.gguf"
    ]


def test_a_head_size_the_cpu_engine_cannot_run_is_this_machine_s_lack(given, model, tmp_path):
    odd = tmp_path / "odd"
    odd.mkdir()
    for file in model.iterdir():
        (odd / file.name).write_bytes(file.read_bytes())
    described = json.loads((odd / "config.json").read_text())
    (odd / "config.json").write_text(json.dumps({**described, "head_dim": 48}))
    found = look(given, f"model.path={odd}")
    assert found.wrong == []
    (line,) = lines(found.cannot_run)
    assert line.startswith("model.path: vLLM on CPU needs a head size that is a multiple of 32, this model's is 48")
    assert look(given, f"model.path={odd}", machine=Machine(4, 64 * GIB, 64 * GIB, (80 * GIB, 80 * GIB))).problems == []


def test_too_little_memory_names_what_takes_most_and_what_to_lower(given):
    (line,) = lines(look(given, "rollout.kv_cache_gb=30", machine=Machine(2, 16 * GIB, 16 * GIB, ())).cannot_run)
    assert line.startswith("memory: the plan needs about ")
    assert line.endswith(
        "GB and this machine has 16.0 GB; most of it is the rollout's kv cache (30.0 GB): lower rollout.kv_cache_gb"
    )


def test_memory_that_is_only_busy_now_is_a_note(given):
    found = look(given, machine=Machine(2, 16 * GIB, GIB, ()))
    assert found.problems == []
    assert found.notes[-1].endswith("1.0 GB are free now")


def test_too_few_gpus_are_this_machine_s_lack(given):
    found = look(given, "learner.ranks=4", machine=Machine(8, 64 * GIB, 64 * GIB, (80 * GIB,)))
    (line,) = lines(found.cannot_run)
    assert line.startswith("placement: the plan needs 5 GPUs (4 x learner at 1, 1 x rollout at 1) and there is 1; ")
    assert line.endswith("; a GPU holds one learner rank and one engine: set learner.ranks to 1")
    assert found.gpus_needed == 5


def printed(found):
    console = Console(record=True, width=200, file=io.StringIO(), highlight=False)
    print_report(found, console)
    return console.export_text()


def test_with_one_gpu_the_report_says_who_shares_it_and_how_its_memory_is_divided(given):
    found = look(given, machine=Machine(8, 64 * GIB, 64 * GIB, (80 * GIB,)))
    assert found.problems == []
    assert (found.gpus_needed, found.placement.colocated) == (1, True)
    text = printed(found)
    assert (
        "placement: 1 learner rank and 1 engine share 1 GPU: each on a GPU of its own they would take 2, and there is 1"
        in text
    )
    # 64 sequences of 160 tokens (128 and one more, in blocks of 16, and a block) at 512 bytes are 5 MB; the engine's
    # weights and logits are less than that, and contexts and work space 0.6, 0.6 and 1.5 GB.
    assert "memory: of a GPU's 80.0 GB the learner takes about 0.6 and the engine 2.1, of which its cache 0.0" in text
    assert f"memory, GB: about {found.gpu_bytes / GIB:.1f} GB of one GPU" in text
    assert runs_on(found) == f"1 GPU of about {found.gpu_bytes / GIB:.0f} GB"


@pytest.mark.parametrize("gpus", [(), (80 * GIB, 80 * GIB)])
def test_where_nothing_is_shared_the_report_says_nothing_of_it(given, gpus):
    found = look(given, machine=Machine(8, 64 * GIB, 64 * GIB, gpus))
    text = printed(found)
    assert found.problems == [] and "placement: " not in text and "memory: " not in text and found.split is None
    assert found.gpus_needed == 2


def test_a_gpu_that_holds_learner_and_engine_in_turns_only_is_told_how(given):
    """Two layers keep (8 x 128 + 2 x 64 + 4 x 256) x 2 bytes a token, and logits and their gradient are 2 x 100 x 2: of
    50,000 tokens 0.4 GB, which an engine of 2.1 GB and a learner of 0.6 do not leave of 3 GB, but for a twentieth."""
    small = Machine(8, 64 * GIB, 64 * GIB, (3 * GIB,))
    wide = ["learner.micro_batch_tokens=50000"]
    (line,) = lines(look(given, *wide, machine=small).cannot_run)
    assert line.startswith("memory: a GPU needs about ")
    assert (
        "the smallest here has 3.0 GB, for learner and engine share it; set learner.gpus_per_rank to 0.5 and " in line
    )
    turns = [*wide, "learner.gpus_per_rank=0.5", "rollout.sleep_level=1"]
    assert look(given, *turns, machine=small).problems == []
    (line,) = lines(look(given, *wide, "rollout.schedule.kind=asynchronous", machine=small).cannot_run)
    assert line.endswith("lower learner.micro_batch_tokens or set model.gradient_checkpointing")


def test_what_waits_in_host_memory_is_not_what_a_gpu_lacks(given):
    """Beside training, checkpoints are written from a copy of the optimiser's state in host memory."""
    (line,) = lines(look(given, machine=Machine(8, 64 * GIB, 64 * GIB, (GIB, GIB))).cannot_run)
    assert "most of it is the rollout's " in line or "most of it is the learner's " in line
    assert "runtime" not in line and "checkpoint copy" not in line


def test_a_critic_deeper_than_the_model_is_wrong(model):
    given = [f"model.path={model}", "critic={layers: 3}", "algorithm={name: ppo}", "data.path=./none.jsonl"]
    assert "critic.layers: must be at most the model's 2, got 3" in lines(look(given).wrong)


def test_the_size_of_an_absent_model_is_read_from_its_name():
    assert facts_by_name("Qwen/Qwen2.5-1.5B-Instruct").parameters == 1_500_000_000
    assert facts_by_name("HuggingFaceTB/SmolLM2-135M-Instruct").parameters == 135_000_000
    assert facts_by_name("openai-community/gpt2") is None
    assert facts_by_name("meta-llama/Llama-3.1-8B-Instruct").parameters == 8_000_000_000


def test_parameters_by_config_agree_with_those_in_the_files(model):
    described = json.loads((model / "config.json").read_text())
    assert facts_by_config(described).parameters == count_parameters(model)
    untied = facts_by_config({**described, "tie_word_embeddings": False})
    assert untied.parameters - count_parameters(model) == 100 * 128


def test_a_model_directory_without_weights_is_wrong(model, tmp_path):
    (tmp_path / "config.json").write_bytes((model / "config.json").read_bytes())
    found = find_model(str(tmp_path))
    assert (found.wrong, found.weights) == (True, False)
    assert "holds no weights" in found.reason


def test_a_run_directory_with_a_run_in_it_is_noted_and_left_alone(tmp_path):
    directory = RunDirectory(tmp_path / "r")
    assert run_directory_note(directory) is None
    assert not (tmp_path / "r").exists()
    with RunDirectory.create(tmp_path / "r").lock():
        (tmp_path / "r" / "config.yaml").write_text("name: x\n")
        assert "is in use by a running driver" in run_directory_note(directory)
    assert "already holds a run" in run_directory_note(directory)


class TestTheCommand:
    @pytest.fixture
    def run(self, tmp_path, given, monkeypatch):
        monkeypatch.chdir(tmp_path)
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(GRPO)
        app = typer.Typer()
        app.command()(check)

        def call(*more):
            return CliRunner().invoke(app, [str(recipe), *given, *more])

        return call

    def test_a_good_config_prints_plan_samples_and_scores(self, run):
        result = run()
        assert result.exit_code == 0
        for expected in (
            "placement on",
            "memory, GB",
            "<|im_start|>assistant",
            "answer: '",
            "recipe.yaml: no problems",
        ):
            assert expected in result.stdout

    def test_problems_come_as_one_config_error(self, run, tmp_path):
        result = run("rollout.kv_cache_gb=0.00001")
        assert isinstance(result.exception, ConfigError)
        assert str(result.exception).startswith(f"{tmp_path / 'recipe.yaml'}: 1 problem\n  rollout.kv_cache_gb: ")

    def test_what_this_machine_lacks_is_no_error_for_a_plan(self, run):
        lacking = ["rollout.kv_cache_gb=100000"]
        assert isinstance(run(*lacking).exception, ConfigError)
        result = run("--plan-only", *lacking)
        assert result.exit_code == 0
        assert "cannot run on this machine: memory: the plan needs about 10000" in result.stdout
        assert "runs on 2 GPUs of about " in result.stdout

    def test_a_plan_still_refuses_what_no_machine_can_run(self, run):
        assert isinstance(run("--plan-only", "model.max_length=5000").exception, ConfigError)

    def test_train_is_given_the_same_problems(self, given, tmp_path):
        (tmp_path / "recipe.yaml").write_text(GRPO)
        good = load_config(tmp_path / "recipe.yaml", given)
        assert problems(good, str(tmp_path / "run")) == []
        bad = load_config(tmp_path / "recipe.yaml", [*given, "rollout.kv_cache_gb=0.00001"])
        assert [problem.path for problem in problems(bad, str(tmp_path / "run"))] == ["rollout.kv_cache_gb"]
        assert not (tmp_path / "run").exists()


def test_a_judge_s_function_is_loaded_and_a_cost_is_tried(given, tmp_path):
    (tmp_path / "mine.py").write_text(
        "def better(prompt, response, data):\n    return float(response > data['other'])\n"
        "def cost(prompt, response, data):\n    return float(len(response))\n"
    )
    pair = "rollout.sampling.samples_per_prompt=2"
    found = look(
        given,
        pair,
        f"reward.judges={{better: {{function: '{tmp_path}/mine.py:better'}}}}",
        f"reward.safety={{functions: {{long: {{function: '{tmp_path}/mine.py:cost'}}}}, bound: 5}}",
    )
    assert found.problems == [] and found.rewards.ignorant["long"] == len("I do not know.")
    lacking = look(given, pair, f"reward.judges={{better: {{function: '{tmp_path}/mine.py:worse'}}}}")
    (line,) = lines(lacking.wrong)
    assert line.startswith("reward.judges: 'better'") and "worse" in line


def test_a_policy_is_no_classifier_and_a_reward_model_has_one_label(given, model, tmp_path):
    folder = tmp_path / "classifier"
    shutil.copytree(model, folder)
    body = json.loads((folder / "config.json").read_text())
    classifier = {"architectures": ["LlamaForSequenceClassification"], "num_labels": 2}
    (folder / "config.json").write_text(json.dumps({**body, **classifier}))
    assert lines(look(given, f"model.path={folder}").wrong) == [
        "model.path: a classifier makes no text; give a causal language model"
    ]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}) + "\n")
    changes = ["algorithm={name: reward_model}", f"model.path={folder}", f"data.path={pairs}"]
    assert lines(examine(config(DPO, *changes), machine=LARGE).wrong) == [
        "model.path: its head has 2 labels and a reward model's has one; start from a language model"
    ]


def test_a_reward_model_that_scores_needs_a_score_head_with_one_label(given, model, tmp_path):
    def wrong(path) -> list[str]:
        return lines(look(given, f"reward.models={{rm: {{path: '{path}'}}}}").wrong)

    assert wrong(model) == [f"reward.models.rm.path: {model} has no score head; train one with algorithm: reward_model"]
    folder = tmp_path / "classifier"
    shutil.copytree(model, folder)
    body = json.loads((folder / "config.json").read_text())
    for labels, said in ((2, ["has 2; export it with num_labels 1"]), (1, [])):
        classifier = {"architectures": ["LlamaForSequenceClassification"], "num_labels": labels}
        (folder / "config.json").write_text(json.dumps({**body, **classifier}))
        assert wrong(folder) == [f"reward.models.rm.path: a reward model has one label, {folder} {end}" for end in said]
