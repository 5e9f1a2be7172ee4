"""Which transport a config gets, and what is refused."""

import pytest

from cluster.config.transport import choose_transport, hardware_lacks
from tests.fixtures.configs import DPO, GRPO, config, problems

LORA = "model.lora={rank: 4}"
COLOCATED = ["weights.transport=cuda_ipc", "learner.gpus_per_rank=0.5", "rollout.gpu_memory_utilization=0.4"]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_auto_chooses_and_says_why(device):
    name, why = choose_transport(config(GRPO), device)
    assert name == "object_store" and ("shared memory" in why) == (device == "cpu")
    assert choose_transport(config(GRPO, LORA), device) == ("object_store", "an adapter is small")


def test_a_transport_that_is_named_is_taken():
    named = config(GRPO, "weights.transport=collective")
    assert choose_transport(named, "cpu") == ("collective", "named by weights.transport")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["weights.transport=sparse_delta"], []),
        (["weights.transport=object_store", "rollout.tensor_parallel=2", LORA], []),
        (COLOCATED, []),
        (
            ["weights.transport=collective", LORA],
            ["weights.transport: an adapter is small and travels whole, got collective; use object_store or remove it"],
        ),
        (
            ["weights.transport=collective", "rollout.tensor_parallel=2"],
            [
                "weights.transport: an engine over 2 devices takes weights in one process only, got collective; use "
                "object_store"
            ],
        ),
        (
            ["weights.transport=cuda_ipc"],
            [
                "weights.transport: cuda_ipc needs learner and engine on one GPU; set learner.gpus_per_rank below 1 or "
                "use object_store, got gpus_per_rank none"
            ],
        ),
        (
            ["weights.transport=collective", *COLOCATED[1:]],
            [
                "weights.transport: NCCL takes a GPU for each end and learner.gpus_per_rank 0.5 lets them share one; "
                "use cuda_ipc or object_store, got collective"
            ],
        ),
        (
            [*COLOCATED, "learner.ranks=2"],
            ["weights.transport: cuda_ipc is for one rank and one engine on one GPU, got 2 ranks"],
        ),
        (
            [*COLOCATED, "rollout.workers=2"],
            ["weights.transport: cuda_ipc serves the one worker beside the learner, got 2 workers"],
        ),
    ],
)
def test_what_a_transport_excludes_is_refused(overrides, expected):
    assert problems(GRPO, *overrides) == expected


def test_hardware_that_lacks_is_named_with_the_way_out():
    colocated = config(GRPO, *COLOCATED)
    assert hardware_lacks(colocated, "cuda") is None
    assert hardware_lacks(colocated, "cpu") == (
        "weights.transport: cuda_ipc shares the memory of a GPU and there is none here; use object_store"
    )
    assert hardware_lacks(config(DPO), "cpu") is None


ASLEEP = ["rollout.sleep_level=2", "learner.gpus_per_rank=0.5", "rollout.gpu_memory_utilization=0.8"]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (ASLEEP, []),
        (
            [*ASLEEP, "learner.gpus_per_rank=1"],
            [
                "rollout.sleep_level: makes room for a learner on the engine's GPU; set learner.gpus_per_rank below 1 "
                "or remove it, got gpus_per_rank 1"
            ],
        ),
        (
            [*ASLEEP, "rollout.schedule.kind=asynchronous"],
            [
                "rollout.sleep_level: engines of the asynchronous schedule work while the learner does; use "
                "synchronous or partial"
            ],
        ),
        (
            [*ASLEEP, "model.lora.rank=8"],
            ["rollout.sleep_level: 2 forgets the base model, and only its adapter is published; use 1"],
        ),
        ([*ASLEEP, "model.lora.rank=8", "rollout.sleep_level=1"], []),
    ],
)
def test_engines_sleep_where_a_learner_needs_their_gpu_and_something_wakes_them(overrides, expected):
    assert problems(GRPO, *overrides) == expected


def test_vllm_sleeps_on_gpus_only():
    assert hardware_lacks(config(GRPO, *ASLEEP), "cuda") is None
    assert hardware_lacks(config(GRPO, *ASLEEP, "rollout.engine=torch"), "cpu") is None
    assert hardware_lacks(config(GRPO, *ASLEEP), "cpu") == (
        "rollout.sleep_level: vLLM frees the memory of GPUs only and there is none here; remove it"
    )
