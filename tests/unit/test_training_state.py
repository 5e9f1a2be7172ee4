"""Training state on disk: what comes back is what went in, and what cannot be loaded is said in one sentence."""

from __future__ import annotations

import json

import pytest
import torch

from learners.engine import OptimizerSettings
from learners.optimizer import adamw
from learners.saving import write_now
from learners.training_state import (
    model_digest,
    put_tensors,
    read_steps,
    read_tensors,
    write_facts,
    write_tensors,
)

FACTS = {"engine": "torch", "model": "m", "dtype": "float32", "world_size": 2, "zero_stage": 1}


def stepped(steps: int) -> tuple[dict[str, torch.Tensor], torch.optim.AdamW]:
    """Two masters that are views of one buffer (as ZeRO keeps them), after `steps` steps."""
    buffer = torch.arange(6, dtype=torch.float32)
    masters = {"group-0": buffer[:4].requires_grad_(), "group-1": buffer[4:].detach().requires_grad_()}
    optimizer = adamw([{"params": [m], "role": "body"} for m in masters.values()], OptimizerSettings(lr=0.1))
    for _ in range(steps):
        for m in masters.values():
            m.grad = torch.ones_like(m)
        optimizer.step()
    return masters, optimizer


def test_masters_and_moments_come_back_bit_for_bit(tmp_path):
    masters, optimizer = stepped(2)
    write_tensors(tmp_path, 1, masters, optimizer, write_now)
    fresh, other = stepped(0)
    put_tensors(read_tensors(tmp_path, 1, fresh), fresh, other)
    for key, master in masters.items():
        assert torch.equal(fresh[key], master)
        for name in ("exp_avg", "exp_avg_sq", "step"):
            assert torch.equal(other.state[fresh[key]][name], optimizer.state[master][name])


def test_a_state_from_before_the_first_step_clears_the_moments(tmp_path):
    masters, optimizer = stepped(0)
    write_tensors(tmp_path, 0, masters, optimizer, write_now)
    used, other = stepped(3)
    put_tensors(read_tensors(tmp_path, 0, used), used, other)
    assert used["group-0"].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert len(other.state) == 0


def test_loading_keeps_the_moments_storage_so_that_views_of_it_stay_true(tmp_path):
    masters, optimizer = stepped(2)
    write_tensors(tmp_path, 0, masters, optimizer, write_now)
    used, other = stepped(1)
    held = other.state[used["group-0"]]["exp_avg"]
    put_tensors(read_tensors(tmp_path, 0, used), used, other)
    assert other.state[used["group-0"]]["exp_avg"] is held
    assert torch.equal(held, optimizer.state[masters["group-0"]]["exp_avg"])


def test_another_grouping_is_refused_before_anything_is_touched(tmp_path):
    masters, optimizer = stepped(1)
    write_tensors(tmp_path, 0, masters, optimizer, write_now)
    with pytest.raises(ValueError, match="differently grouped parameters"):
        read_tensors(tmp_path, 0, {"group-0": torch.zeros(4)})
    with pytest.raises(ValueError, match="differently grouped parameters"):
        read_tensors(tmp_path, 0, {"group-0": torch.zeros(3), "group-1": torch.zeros(3)})


def test_steps_come_back_and_the_state_is_plain_json(tmp_path):
    write_facts(tmp_path, FACTS, steps=7)
    assert read_steps(tmp_path, FACTS) == 7
    assert json.loads((tmp_path / "state.json").read_text())["facts"] == FACTS


@pytest.mark.parametrize(
    ("key", "mine", "said"),
    [
        ("world_size", 1, "has world_size 2 but this engine has 1; resume with the world_size it was saved with"),
        ("zero_stage", 3, "has zero_stage 1 but this engine has 3"),
        ("engine", "deepspeed", "has engine 'torch' but this engine has 'deepspeed'"),
    ],
)
def test_a_state_of_another_kind_is_named_by_the_first_difference(tmp_path, key, mine, said):
    write_facts(tmp_path, FACTS, steps=7)
    with pytest.raises(ValueError, match=said):
        read_steps(tmp_path, {**FACTS, key: mine})


def test_a_digest_knows_names_shapes_and_order():
    one = model_digest([("a", (2, 3)), ("b", (3,))])
    assert one == model_digest([("a", (2, 3)), ("b", (3,))])
    others = ([("b", (3,)), ("a", (2, 3))], [("a", (3, 2)), ("b", (3,))], [("c", (2, 3)), ("b", (3,))])
    assert one not in {model_digest(other) for other in others}
