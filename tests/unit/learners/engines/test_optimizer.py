"""Schedule, parameter groups, norm and the AdamW with float32 masters, against numbers worked out by hand."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from learners.engines.optimizer import (
    MasterAdamW,
    NamedParameter,
    check_settings,
    clip_factor,
    lr_factor,
    parameter_groups,
    scale_gradients,
    set_learning_rates,
    squared_norm,
)
from learners.engines.settings import OptimizerSettings

CPU = torch.device("cpu")


def named(**shapes: tuple[int, ...]) -> list[NamedParameter]:
    return [
        NamedParameter(name.replace("__", "."), torch.nn.Parameter(torch.ones(shape)), shape)
        for name, shape in shapes.items()
    ]


def factors(steps: int, **settings) -> list[float]:
    return [lr_factor(OptimizerSettings(**settings), step) for step in range(steps)]


def test_constant_schedule_stays_at_the_peak_past_total_steps():
    assert factors(3, total_steps=1) == [1.0, 1.0, 1.0]


def test_warm_up_rises_in_equal_parts_and_no_step_is_at_zero():
    assert factors(5, warmup_steps=4) == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_linear_schedule_reaches_the_floor_at_total_steps_and_stays():
    assert factors(7, schedule="linear", total_steps=4, min_lr_ratio=0.2) == pytest.approx(
        [1.0, 0.8, 0.6, 0.4, 0.2, 0.2, 0.2]
    )


def test_cosine_schedule_is_half_way_at_half_time():
    got = factors(5, schedule="cosine", total_steps=4)
    assert got == pytest.approx([1.0, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125), 0.0])


def test_frozen_steps_have_rate_zero_and_shift_the_rest():
    got = factors(6, freeze_steps=2, warmup_steps=2, schedule="linear", total_steps=6)
    assert got == [0.0, 0.0, 0.5, 1.0, 1.0, 0.5]


def test_warm_up_that_fills_the_run_leaves_only_the_floor():
    assert factors(3, warmup_steps=2, schedule="cosine", total_steps=2, min_lr_ratio=0.1) == [0.5, 1.0, 0.1]


def test_head_rate_follows_the_same_schedule_from_its_own_peak():
    settings = OptimizerSettings(lr=0.1, head_lr=0.4, warmup_steps=2)
    groups = parameter_groups(named(body__weight=(2, 2), value_head__weight=(1, 2)), settings)
    assert set_learning_rates(groups, settings, 0) == 0.05
    assert [(g["role"], g["lr"]) for g in groups] == [("body", 0.05), ("head", 0.2)]
    set_learning_rates(groups, dataclasses.replace(settings, head_lr=None), 0)
    assert [g["lr"] for g in groups] == [0.05, 0.05]


def test_groups_decay_matrices_only_and_keep_the_head_apart():
    parameters = named(
        trunk__w=(2, 3), trunk__norm=(3,), value_head__weight=(1, 3), value_head__bias=(1,), my_value_head=(2, 2)
    )
    groups = parameter_groups(parameters, OptimizerSettings(weight_decay=0.1))
    assert [(g["role"], g["weight_decay"], g["names"]) for g in groups] == [
        ("body", 0.1, ["trunk.w", "my_value_head"]),
        ("body", 0.0, ["trunk.norm"]),
        ("head", 0.1, ["value_head.weight"]),
        ("head", 0.0, ["value_head.bias"]),
    ]


def test_groups_go_by_the_whole_shape_of_a_sharded_parameter():
    sharded = [NamedParameter("w", torch.nn.Parameter(torch.empty(0)), (4, 4))]
    assert parameter_groups(sharded, OptimizerSettings(weight_decay=0.1))[0]["weight_decay"] == 0.1


def test_norm_of_a_long_tensor_is_right_to_a_millionth():
    # 4,000,003 elements of 3: torch's float32 norm of it is off by more than 1e-4.
    square = squared_norm([torch.full((4_000_003,), 3.0), torch.tensor([4.0])], CPU).item()
    assert math.sqrt(square) == pytest.approx(math.sqrt(9.0 * 4_000_003 + 16.0), rel=1e-6)


def test_norm_of_nothing_is_zero_and_nan_shows():
    assert squared_norm([], CPU).item() == 0.0
    assert math.isnan(squared_norm([torch.tensor([1.0, float("nan")])], CPU).item())
    assert math.isinf(squared_norm([torch.tensor([float("inf")])], CPU).item())


def test_clipping_scales_down_only_and_zero_turns_it_off():
    assert clip_factor(5.0, 1.0) == pytest.approx(0.2)
    assert clip_factor(0.5, 1.0) == 1.0
    assert clip_factor(5.0, 0.0) == 1.0
    gradient = torch.tensor([3.0, 4.0])
    scale_gradients([gradient], 0.5)
    assert gradient.tolist() == [1.5, 2.0]


def test_small_steps_add_up_in_the_masters_of_bfloat16_weights():
    # 1 - 0.001 rounds back to 1 in bfloat16 (neighbours below 1 are 1/256 apart); ten such steps do not.
    weight = torch.nn.Parameter(torch.ones(1, 1, dtype=torch.bfloat16))
    adamw = MasterAdamW([NamedParameter("w", weight, (1, 1))], OptimizerSettings(lr=0.001))
    seen = []
    for _ in range(10):
        weight.sum().backward()
        adamw.step()
        adamw.drop_gradients()
        seen.append(weight.item())
    assert seen[0] == 1.0
    assert adamw.masters["w"].item() == pytest.approx(0.99, abs=1e-6)
    assert seen[-1] == 0.98828125  # the bfloat16 nearest to 0.99


def test_a_closure_whose_gradients_the_masters_would_miss_is_refused_and_moves_nothing():
    weight = torch.nn.Parameter(torch.ones(1, 1, dtype=torch.bfloat16))
    adamw = MasterAdamW([NamedParameter("w", weight, (1, 1))], OptimizerSettings(lr=0.5))
    with pytest.raises(ValueError, match="step without a closure"):
        adamw.step(lambda: weight.sum().backward())
    assert weight.grad is None and adamw.masters["w"].item() == 1.0 and not adamw.state


def test_bfloat16_gradients_accumulate_in_float32():
    weight = torch.nn.Parameter(torch.ones(1, 1, dtype=torch.bfloat16))
    adamw = MasterAdamW([NamedParameter("w", weight, (1, 1))], OptimizerSettings())
    for part in (1.0, 1.0 / 512):
        (weight * part).sum().backward()
    assert adamw.gradients()[0].item() == 1.0 + 1.0 / 512


def test_a_float32_parameter_is_its_own_master():
    weight = torch.nn.Parameter(torch.ones(2, 2))
    assert MasterAdamW([NamedParameter("w", weight, (2, 2))], OptimizerSettings()).masters["w"] is weight


def test_rate_zero_moves_the_moments_but_no_weight():
    weight = torch.nn.Parameter(torch.tensor([[0.3, -0.7]]))
    settings = OptimizerSettings(lr=0.1, freeze_steps=1, weight_decay=0.1)
    adamw = MasterAdamW([NamedParameter("w", weight, (1, 2))], settings)
    before = weight.detach().clone()
    weight.grad = torch.tensor([[1.0, 2.0]])
    set_learning_rates(adamw.param_groups, settings, 0)
    adamw.step()
    assert torch.equal(weight, before)
    assert adamw.state[weight]["exp_avg"].tolist() == [pytest.approx([0.1, 0.2])]


@pytest.mark.parametrize(
    ("change", "said"),
    [({"schedule": "cosin"}, "optimizer.schedule must be one of"), ({"freeze_steps": -1}, "freeze_steps must not be")],
)
def test_settings_that_cannot_be_followed_are_refused_in_a_sentence(change, said):
    with pytest.raises(ValueError, match=said):
        check_settings(OptimizerSettings(**change))
