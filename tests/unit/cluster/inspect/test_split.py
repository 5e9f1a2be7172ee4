"""How learner and engine divide a GPU, worked out by hand on a model of 1,000 parameters and a GPU of 8 GB."""

from __future__ import annotations

import pytest

from cluster.config.placement import plan
from cluster.inspect.machine import GIB
from cluster.inspect.memory import GPU_CONTEXT, WORK_SPACE, gpu_bytes_needed, plan_memory
from cluster.inspect.model import ModelFacts
from cluster.inspect.split import Split, divide
from tests.fixtures.configs import GRPO, config

SIZED = ModelFacts(
    parameters=1000, origin="config", layers=2, hidden=8, intermediate=16, kv_heads=1, head_dim=4, vocabulary=10
)
SEQUENCE = 96 * 32
"""Bytes of 64 tokens in blocks of 16, one token and one block more, at 32 bytes a token."""
LEARNER = 18_000 + 1024 * (2 * 272 + 40) + GPU_CONTEXT
"""18 bytes a parameter; activations and logits of a micro-batch of 1,024 tokens."""
APART = 2000 + 64 * 10 * 4 + GPU_CONTEXT + WORK_SPACE
"""Of the engine, without its cache: weights, logits of 64 sequences."""


def divided(*overrides: str, gpu: int = 8 * GIB, facts: ModelFacts = SIZED) -> Split | None:
    given = config(GRPO, *overrides)
    return divide(given, facts, plan_memory(given, facts, None, [], plan(given, 2, 1)), gpu)


def test_an_engine_takes_no_more_cache_than_its_sequences_can_fill() -> None:
    assert divided() == Split(8 * GIB, LEARNER, APART + 64 * SEQUENCE, 64 * SEQUENCE)


def test_where_less_is_left_it_takes_what_is_left_when_a_twentieth_is_kept_free() -> None:
    room = int(0.95 * 8 * GIB) - LEARNER - APART
    # 64 sequences of 10 million tokens could fill 20 GB; one of 300 million takes more than the GPU has.
    found = divided("model.max_length=10000000")
    assert (found.cache, found.engine) == (room, APART + room)
    assert divided("model.max_length=300000000") is None


def test_a_share_that_is_named_is_the_engine_s_whatever_it_can_fill() -> None:
    found = divided("learner.gpus_per_rank=0.5", "rollout.gpu_memory_utilization=0.5")
    assert (found.engine, found.cache) == (4 * GIB, 4 * GIB - APART)
    assert found.utilization == 0.5


def test_the_smallest_gpu_that_fits_is_the_one_that_the_plan_asks_for() -> None:
    given = config(GRPO)
    needed = gpu_bytes_needed(given, plan_memory(given, SIZED, None, [], plan(given, 2, 1)))
    assert needed == round((LEARNER + APART + SEQUENCE) / 0.95)
    assert divided(gpu=needed).cache == pytest.approx(SEQUENCE, abs=2)
    assert divided(gpu=needed - 100) is None


def test_an_engine_that_sleeps_has_what_an_update_will_take() -> None:
    awake = divided("model.max_length=10000000", "learner.gpus_per_rank=0.5")
    asleep = divided("model.max_length=10000000", "learner.gpus_per_rank=0.5", "rollout.sleep_level=1")
    assert asleep.cache - awake.cache == 1024 * (2 * 272 + 40)


def test_of_a_model_known_by_name_alone_the_engine_takes_what_is_left() -> None:
    named = ModelFacts(parameters=1000, origin="name")
    found = divided(facts=named)
    assert found.engine == int(0.95 * 8 * GIB) - 18_000 - GPU_CONTEXT


def test_it_is_said_in_gigabytes() -> None:
    assert str(Split(80 * GIB, 30 * GIB, 18 * GIB, 13 * GIB)) == (
        "of a GPU's 80.0 GB the learner takes about 30.0 and the engine 18.0, of which its cache 13.0"
    )
