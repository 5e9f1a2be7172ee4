"""What a resume may change of a config, and how what it may not is named."""

from __future__ import annotations

import re

import pytest

from cluster.config import Config
from cluster.config.placement import plan, shortage
from cluster.config.rules.resuming import FREE_IN_A_STAGE, FREE_TO_CHANGE, FREE_WHEN_DONE, changed_keys
from cluster.driver import _refuse_other_config
from cluster.errors import UserError
from cluster.run.directory import RunDirectory
from tests.fixtures.configs import GRPO, PPO, config


def changed(*overrides: str, text: str = PPO) -> list[str]:
    saved, given = (c.model_dump(mode="json") for c in (config(text), config(text, *overrides)))
    return changed_keys(saved, given, FREE_TO_CHANGE)


@pytest.mark.parametrize(
    "overrides",
    [
        ("steps=7", "checkpoint.every_steps=3", "recovery.silence_s=9"),
        ("learner.ranks=3",),
        ("learner.max_nonfinite_steps=9", "reward.max_failures=99"),
        ("learner.zero.stage=3", "learner.zero.offload_parameters=cpu", "critic.zero.stage=2"),
        ("rollout.gpu_memory_utilization=0.4", "rollout.sleep_level=1", "learner.gpus_per_rank=0.5"),
        ("learner.backend=torch", "learner.threads=2", "learner.gpus_per_rank=0.1", "learner.update_timeout_s=60"),
    ],
)
def test_a_resume_may_move_the_end_and_cut_the_learner_otherwise(overrides):
    assert changed(*overrides) == []


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (("learner.optimizer.lr=0.5", "learner.ranks=2"), ["learner.optimizer.lr"]),
        (
            ("learner.micro_batch_tokens=512", "learner.minibatches=2"),
            ["learner.minibatches", "learner.micro_batch_tokens"],
        ),
        (("critic.optimizer.lr=0.5", "critic.zero.stage=2", "seed=4"), ["seed", "critic.optimizer.lr"]),
        (("reward.functions.correct.function=contains",), ["reward.functions.correct.function"]),
        (("critic.layers=1",), ["critic.layers"]),
    ],
)
def test_what_decides_the_numbers_is_named_by_its_dotted_key(overrides, named):
    assert changed(*overrides) == named


def test_when_to_evaluate_may_change_and_by_what_to_compare_may_not():
    """Scores before training are of these prompts, answered so, and the best until now is the best by this metric."""
    saved = config(PPO).model_dump(mode="json")
    when = {"every_steps": 3, "patience": 2, "kl_bound": 1.0}
    what = {"temperature": 1.0, "max_tokens": 9, "metric": "correct", "prompts": 4}
    given = saved | {"evaluation": when | what}
    assert given["evaluation"].keys() == saved["evaluation"].keys()
    assert changed_keys(saved, given, FREE_TO_CHANGE) == [f"evaluation.{key}" for key in what]


def test_a_section_that_comes_or_goes_is_named_whole_and_a_missing_key_is_a_null_one():
    saved = {"critic": None, "reward": {"old": 1}, "steps": 3}
    given = {"critic": {"zero": {}}, "reward": {"new": None}, "steps": 4, "seed": None}
    assert changed_keys(saved, given, FREE_TO_CHANGE) == ["critic", "reward.old"]


def test_every_free_key_is_one_of_the_config_s():
    tree = config(PPO).model_dump(mode="json")
    for key in (*FREE_TO_CHANGE, *FREE_WHEN_DONE):
        at = tree
        for part in key.split("."):
            at = at[part]
    assert set(FREE_WHEN_DONE) < set(FREE_IN_A_STAGE) < set(FREE_TO_CHANGE)


@pytest.mark.parametrize(
    "overrides",
    [
        ("learner.ranks=4",),
        ("rollout.workers=4", "recovery.spares=1"),
        ("rollout.tensor_parallel=2",),
        ("weights.transport=collective",),
    ],
)
def test_what_a_plan_wants_changed_on_fewer_gpus_a_resume_there_may_change(overrides):
    """Else a run that was begun on more GPUs could not go on."""
    text = shortage(plan(config(GRPO, *overrides), cpus=8, gpus=1), 1)
    asked = re.findall(r"([a-z]+\.[a-z_]+) to \w+", text)
    assert asked
    free = (key for each in asked for key in FREE_TO_CHANGE if each == key or each.startswith(f"{key}."))
    assert len(list(free)) == len(asked), text


def test_the_refusal_names_the_keys_and_what_may_change(tmp_path):
    directory = RunDirectory.create(tmp_path / "run")
    started: Config = config(GRPO)
    directory.write_config(started)
    _refuse_other_config(config(GRPO, "learner.ranks=2", "learner.zero.stage=2"), directory)
    with pytest.raises(
        UserError,
        match=r"was started with other settings of seed, learner\.optimizer\.lr; a resume may change only steps, .*"
        r"learner\.ranks, .*critic\.zero, name: restore them",
    ):
        _refuse_other_config(config(GRPO, "learner.optimizer.lr=0.5", "learner.ranks=2", "seed=3"), directory)
