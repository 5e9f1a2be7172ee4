"""The other methods and shapes of a run, each once and whole: PPO over two nodes, DPO on pairs."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.runs import recipe, rows, train


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[str]:
    """A Ray cluster of two nodes on this machine; its address."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 3, "include_dashboard": False})
    cluster.add_node(num_cpus=3)
    try:
        yield cluster.address
    finally:
        cluster.shutdown()


def test_ppo_learns_with_two_rollout_workers_and_two_zero_ranks_on_two_nodes(
    two_nodes: str, tiny_model: Path, tmp_path: Path
) -> None:
    """ZeRO-2 for the policy, ZeRO-3 for the critic, one worker and one rank at least on each node."""
    path = recipe(
        tmp_path,
        tiny_model,
        steps=3,
        algorithm={"name": "ppo"},
        critic={"zero": {"stage": 3}, "optimizer": {"lr": 1e-3, "head_lr": 1e-3}},
        rollout={"workers": 2, "threads": 1},
        learner={"ranks": 2, "threads": 1, "zero": {"stage": 2}, "minibatches": 2},
        ray={"address": two_nodes},
        checkpoint={"every_steps": 3},
    )
    train(path, tmp_path / "run")
    steps = rows(tmp_path / "run")[1:]
    assert [row["step"] for row in steps] == [1, 2, 3]
    assert all(row["sync/mismatch"] < 1e-4 for row in steps), "every engine runs what the ranks hold"
    assert all(math.isfinite(row["value/loss"]) for row in steps)
    assert steps[0]["value/mean"] == pytest.approx(0.0, abs=0.2), "the value head starts at zero"
    assert all(row["value/grad_norm"] > 0 and row["policy/grad_norm"] > 0 for row in steps)
    saved = os.listdir(tmp_path / "run" / "checkpoints" / "step-3" / "policy")
    assert {"rank-0.safetensors", "rank-1.safetensors"} <= set(saved)


def test_dpo_raises_the_accuracy_on_held_out_pairs(tiny_model: Path, tmp_path: Path) -> None:
    """The rule: digits are preferred to letters. 96 pairs once, 24 held out."""
    pairs = [
        {
            "prompt": f"item {i}",
            "chosen": f"{i * 7919 % 100000}",
            "rejected": "".join(chr(97 + i * k % 26) for k in range(5)),
        }
        for i in range(120)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"""
name: tiny-dpo
steps: 12
deterministic: true
algorithm: {{name: dpo, preference: {{loss: sigmoid, beta: 0.5, pairs_per_step: 8}}}}
model: {{path: {tiny_model}, dtype: float32, max_length: 256}}
data: {{path: {tmp_path / "pairs.jsonl"}, heldout: 24}}
learner: {{micro_batch_tokens: 1024, optimizer: {{lr: 1.0e-3}}}}
checkpoint: {{every_steps: 12}}
"""
    )
    train(path, tmp_path / "run")
    found = rows(tmp_path / "run")
    assert found[1]["loss"] == pytest.approx(math.log(2), abs=1e-5), "the policy starts as its own reference"
    assert found[0]["eval/margin"] == 0.0
    assert found[-1]["loss"] < 0.3
    assert found[-1]["eval/accuracy"] > 0.95


def test_engines_that_forget_their_weights_while_the_learner_works_have_the_new_ones_after(
    tiny_model: Path, tmp_path: Path
) -> None:
    """On the twin, whose forgotten weights are NaN: one that a publish left asleep would fail the run."""
    path = recipe(
        tmp_path,
        tiny_model,
        steps=2,
        rollout={"engine": "torch", "sleep_level": 2, "gpu_memory_utilization": 0.8},
        learner={"gpus_per_rank": 0.5, "backend": "torch"},
        checkpoint={"every_steps": 2},
    )
    train(path, tmp_path / "run")
    steps = rows(tmp_path / "run")[1:]
    assert len(steps) == 2 and all(row["sync/mismatch"] < 1e-4 for row in steps)
