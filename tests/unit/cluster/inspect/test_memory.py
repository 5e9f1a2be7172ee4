"""The memory plan, worked out by hand: a model of 1,000 parameters makes every byte countable."""

import pytest

from cluster.config.placement import plan
from cluster.inspect.memory import (
    CHECKPOINT_COPY,
    GPU_CONTEXT,
    RUNTIME,
    WORK_SPACE,
    checkpoint_bytes,
    critic_parameters,
    gpu_bytes_needed,
    kv_bytes_per_token,
    plan_memory,
)
from cluster.inspect.model import ModelFacts
from tests.fixtures.configs import DPO, GRPO, PPO, config

NAMED = ModelFacts(parameters=1000, origin="name")
SIZED = ModelFacts(
    parameters=1000, origin="config", layers=2, hidden=8, intermediate=16, kv_heads=1, head_dim=4, vocabulary=10
)


def parts(text, *overrides, role="learner", facts=NAMED, gpus=0.0):
    given = config(text, *overrides)
    critic = facts if given.critic else None
    memory = plan_memory(given, facts, critic, [], plan(given, 2, gpus))
    return {part: size for part, size in memory.role(role).parts.items() if part not in ("runtime", CHECKPOINT_COPY)}


def test_bfloat16_weights_have_float32_gradients_masters_and_two_moments():
    assert parts(GRPO) == {"weights": 2000, "gradients": 4000, "optimiser": 12000}


def test_float32_weights_are_their_own_masters():
    assert parts(GRPO, "model.dtype=float32") == {"weights": 4000, "gradients": 4000, "optimiser": 8000}


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        (0, {"weights": 2000, "gradients": 4000, "optimiser": 12000}),
        (1, {"weights": 2000, "gradients": 4000, "optimiser": 3000}),
        (2, {"weights": 2000, "gradients": 1000, "optimiser": 3000}),
        (3, {"weights": 500, "gradients": 1000, "optimiser": 3000}),
    ],
)
def test_each_zero_stage_shares_one_more_thing_among_four_ranks(stage, expected):
    assert parts(GRPO, "learner.ranks=4", f"learner.zero.stage={stage}") == expected


def test_what_is_offloaded_leaves_the_gpu_for_host_memory():
    found = parts(GRPO, "learner.ranks=2", "learner.zero={stage: 3, offload_optimizer: cpu, offload_parameters: cpu}")
    assert found == {"gradients": 2000, "offloaded state": 6000 + 1000}


def test_ppo_adds_a_critic_and_a_reference():
    assert parts(PPO) == {"weights": 4000, "gradients": 8000, "optimiser": 24000, "reference": 2000}


@pytest.mark.parametrize(
    ("text", "overrides", "expected"),
    [(GRPO, [], 12_000), (PPO, [], 24_000), (GRPO, ["learner.ranks=4", "learner.zero.stage=1"], 3_000)],
    ids=["a policy", "and a critic", "a share of it"],
)
def test_masters_and_moments_are_copied_to_be_written_beside_training(text, overrides, expected):
    given = config(text, *overrides, "checkpoint.asynchronous=true")
    learner = plan_memory(given, NAMED, NAMED if given.critic else None, [], plan(given, 2, 0)).role("learner")
    assert learner.parts[CHECKPOINT_COPY] == expected
    assert learner.on_device == learner.bytes - expected - RUNTIME["learner"], "in host memory"


def test_a_critic_of_half_the_layers_keeps_the_embedding_and_half_the_trunk():
    # Embedding 10 x 8 = 80; trunk 920, of which one layer of two is 460.
    assert critic_parameters(config(PPO, "critic.layers=1"), SIZED) == 80 + 460
    assert critic_parameters(config(PPO), SIZED) == 1000


def test_a_preference_run_has_neither_a_second_model_nor_an_engine():
    given = config(DPO)
    memory = plan_memory(given, NAMED, None, [], plan(given, 2, 0))
    assert [role.role for role in memory.roles] == ["learner"]
    assert "reference" not in memory.role("learner").parts


def test_a_reward_model_makes_no_logits():
    given = config(DPO, "algorithm={name: reward_model}")
    memory = plan_memory(given, SIZED, None, [], plan(given, 2, 0))
    assert "logits" not in memory.role("learner").parts


def test_activations_and_logits_grow_with_the_micro_batch():
    # A layer keeps (8 x 8 + 2 x 1 x 4 + 4 x 16) x 2 bytes = 272 a token; two layers 544. Logits and their gradient: 2 x
    # 10 x 2 bytes = 40 a token.
    found = parts(GRPO, "learner.micro_batch_tokens=100", facts=SIZED)
    assert (found["activations"], found["logits"]) == (54_400, 4_000)
    # With checkpointing each layer keeps its input (8 x 2 bytes), and one layer is whole.
    less = parts(GRPO, "learner.micro_batch_tokens=100", "model.gradient_checkpointing=true", facts=SIZED)
    assert less["activations"] == 100 * (2 * 16 + 272)


def test_an_engine_on_cpu_holds_the_cache_it_was_given():
    found = parts(GRPO, "rollout.kv_cache_gb=0.25", role="rollout", facts=SIZED)
    assert (found["weights"], found["kv cache"]) == (2000, 1 << 28)


def test_an_engine_on_a_gpu_needs_at_least_one_whole_sequence():
    # Key and value, 2 layers x 1 head x 4, 2 bytes each: 32 bytes a token. 64 tokens and one more are 5 blocks of 16,
    # and one block is the engine's own.
    assert kv_bytes_per_token(SIZED, "bfloat16") == 32
    assert parts(GRPO, role="rollout", facts=SIZED, gpus=8)["kv cache"] == 96 * 32


def test_the_ends_of_a_transport_keep_what_they_need():
    delta = ["weights.transport=sparse_delta"]
    assert parts(GRPO, *delta, facts=SIZED)["last version"] == 2000
    assert parts(GRPO, *delta, role="rollout", facts=SIZED)["last version"] == 2000
    given = config(GRPO, *delta)
    assert plan_memory(given, NAMED, None, [], plan(given, 2, 0)).shared == 6000
    shared = ["weights.transport=cuda_ipc", "learner.gpus_per_rank=0.5", "rollout.gpu_memory_utilization=0.4"]
    assert parts(GRPO, *shared, facts=SIZED, gpus=1)["published weights"] == 2000
    assert "published weights" not in parts(GRPO, *shared, role="rollout", facts=SIZED, gpus=1)
    assert "last version" not in parts(DPO, facts=SIZED)


def test_the_total_counts_every_process_and_two_versions_of_the_weights():
    given = config(GRPO, "learner.ranks=2", "rollout.workers=3", "rollout.kv_cache_gb=1")
    memory = plan_memory(given, NAMED, None, [], plan(given, 2, 0))
    learners = 2 * (18_000 + RUNTIME["learner"])
    engines = 3 * (2000 + (1 << 30) + RUNTIME["rollout"])
    assert memory.shared == 4000
    assert memory.total == (1 << 30) + 4000 + learners + engines + RUNTIME["scorer"]


def test_reward_models_count_in_the_scorer_and_an_unknown_one_marks_the_plan():
    given = config(GRPO, "reward.models={a: {path: m}, b: {path: n}}")
    memory = plan_memory(given, NAMED, None, [SIZED, None], plan(given, 2, 0))
    assert memory.role("scorer").parts["reward models"] == 2000
    assert memory.role("scorer").known is False


def test_a_shared_gpu_must_hold_the_learner_beside_the_engine_s_part():
    large = ModelFacts(parameters=10**9, origin="name")
    learner, engine = 18 * 10**9 + GPU_CONTEXT, 2 * 10**9 + GPU_CONTEXT + WORK_SPACE

    def needed(*overrides, gpus=8):
        given = config(GRPO, *overrides)
        return gpu_bytes_needed(given, plan_memory(given, large, None, [], plan(given, 2, gpus)))

    half = "learner.gpus_per_rank=0.5"
    assert needed() == learner
    # What is divided by the plan leaves a twentieth free.
    assert needed(gpus=1) == needed(half) == round((learner + engine) / 0.95)
    assert needed(half, "rollout.gpu_memory_utilization=0.25") == round(learner / 0.75)
    assert needed(half, "rollout.gpu_memory_utilization=0.05") == round(engine / 0.05)


def test_the_disk_holds_the_checkpoints_kept_one_being_written_and_two_policies():
    given = config(PPO, "checkpoint.keep_last=2")
    # Two last, the best and one being written: 4 x (policy + critic) x 12 bytes, and two exports of 2 bytes each.
    assert checkpoint_bytes(given, NAMED, NAMED) == 4 * 2000 * 12 + 4000
    assert checkpoint_bytes(config(GRPO, "checkpoint={keep_best: false, export: false}"), NAMED, None) == 3 * 1000 * 12


ADAPTED = ModelFacts(
    parameters=1000,
    origin="config",
    layers=2,
    hidden=8,
    intermediate=16,
    kv_heads=1,
    head_dim=4,
    vocabulary=10,
    heads=2,
)
# Rank 4 on two layers: q and o 8 + 8 each, k and v 8 + 4, three of the feed-forward 8 + 16: 4 x 2 x 128 = 1024.
LORA = "model.lora={rank: 4}"
KL = "algorithm={name: grpo}"


def test_an_adapter_alone_has_gradients_masters_and_moments_and_its_base_is_the_reference():
    found = parts(GRPO, LORA, KL, facts=ADAPTED)
    assert "reference" in parts(GRPO, KL, facts=ADAPTED) and "reference" not in found
    assert found["weights"] == 2000 + 2 * 1024
    assert (found["gradients"], found["optimiser"]) == (4 * 1024, 12 * 1024)
    assert parts(GRPO, LORA, role="rollout", facts=ADAPTED)["weights"] == 2 * (1000 + 1024)


def test_an_adapter_of_some_modules_counts_those():
    found = parts(GRPO, "model.lora={rank: 4, targets: [q_proj, k_proj]}", facts=ADAPTED)
    assert found["gradients"] == 4 * 4 * 2 * (16 + 12)


def test_the_base_of_an_adapter_is_shared_in_stage_3_and_offloaded_with_the_parameters():
    sharded = parts(GRPO, LORA, "learner.ranks=2", "learner.zero.stage=3", facts=ADAPTED)
    assert sharded["weights"] == 1000 + 1024
    away = parts(GRPO, LORA, "learner.ranks=2", "learner.zero={stage: 3, offload_parameters: cpu}", facts=ADAPTED)
    assert "weights" not in away and away["offloaded state"] == 1000 + 1024


def test_what_is_published_and_kept_of_an_adapter_is_the_adapter():
    given = config(GRPO, LORA, "checkpoint={keep_best: false, keep_last: 2}")
    assert plan_memory(given, ADAPTED, None, [], plan(given, 2, 0)).shared == 2 * 2 * 1024
    assert checkpoint_bytes(given, ADAPTED, None) == 3 * 1024 * 12 + 2 * 2000
    alone = config(GRPO, "model.lora={rank: 4, export: adapter}", "checkpoint={keep_best: false, keep_last: 2}")
    assert checkpoint_bytes(alone, ADAPTED, None) == 3 * 1024 * 12 + 2 * 2 * 1024


def test_an_adapter_of_a_model_known_by_name_counts_as_a_fiftieth():
    assert parts(GRPO, LORA) == {"weights": 2000 + 40, "gradients": 80, "optimiser": 240}
