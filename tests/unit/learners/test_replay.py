"""`raylign replay`: a skipped step's columns come back, and what was not finite in it is named."""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cluster.commands.replay import replay_lines
from cluster.config import load_config
from cluster.errors import UserError
from cluster.run.directory import RunDirectory
from learners.export import dump_inputs, load_inputs
from learners.methods.method import StepInputs
from tests.fixtures.columns import random_batch, scores_of
from tests.integration.runs import recipe


@pytest.fixture
def run(tmp_path: Path, tiny_model: Path) -> RunDirectory:
    made = RunDirectory.create(tmp_path / "run")
    made.write_config(load_config(recipe(tmp_path, tiny_model, algorithm={"name": "grpo", "kl": {"coef": 0.1}})))
    return made


def inputs() -> StepInputs:
    batch = random_batch(5, [4, 3, 6, 2], [[5, 2], [3, 4], [6, 6], [1, 9]], shuffle=True)
    reference = np.full(len(batch.token_ids), -1.0, np.float32)
    return StepInputs(7, batch, scores_of(*[1.0, 0.0] * 4), kl_coef=0.1, reference=reference)


def test_the_columns_come_back_as_they_were(tmp_path: Path) -> None:
    given = dataclasses.replace(inputs(), old=np.zeros(3, np.float32), kto_baseline=0.5)
    dump_inputs(tmp_path / "step.npz", given)
    found = load_inputs(tmp_path / "step.npz")
    for name in ("step", "kl_coef", "kto_baseline", "values", "baseline", "row_reference"):
        assert getattr(found, name) == getattr(given, name)
    for name in ("reference", "old"):
        np.testing.assert_array_equal(getattr(found, name), getattr(given, name))
    np.testing.assert_array_equal(found.scores.values, given.scores.values)
    assert all(np.array_equal(a.token_ids, b.token_ids) for a, b in zip(found.batch, given.batch, strict=True))


def test_a_column_that_is_not_finite_is_named_with_the_gradients_that_it_spoils(run: RunDirectory) -> None:
    given = inputs()
    given.reference[2] = np.nan
    dump_inputs(run.skipped_batch(7), given)
    found = replay_lines(str(run), 7)
    count = len(given.reference)
    assert found[0] == f"step 7 of {run}, with the weights that the run began with (the step's own are not kept)"
    assert f"  log-probs of the reference: 1 of {count} not finite" in found
    assert "  scores: all 8 finite" in found
    assert found[-2:] == [
        "  the loss is not finite, its gradients are",
        "  the step is not finite with these weights either",
    ]


def test_gradients_that_the_newest_weights_before_the_step_spoil_are_named(run: RunDirectory, tiny_model: Path) -> None:
    for step in (5, 6, 8):
        shutil.copytree(tiny_model, run.policy(step))
    tensors = load_file(run.policy(6) / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][0, 0] = torch.nan
    save_file(tensors, run.policy(6) / "model.safetensors", metadata={"format": "pt"})
    dump_inputs(run.skipped_batch(7), inputs())
    found = replay_lines(str(run), 7)
    assert "with the weights of step-6 (" in found[0]
    assert re.fullmatch(r"  gradients not finite, from the loss on: model\.\S+, .* and \d+ more", found[-2])


def test_a_step_that_is_finite_with_these_weights_says_so(run: RunDirectory) -> None:
    run.policy(6).mkdir()
    (run.policy(6) / "adapter_config.json").write_text("{}")  # an adapter is no model: its base would get another
    dump_inputs(run.skipped_batch(7), inputs())
    found = replay_lines(str(run), 7)
    assert found[-1] == "  the step is finite with these weights"
    assert any(line.startswith("  policy/grad_norm: ") for line in found)


def test_a_step_that_was_not_skipped_is_told_with_those_that_were(run: RunDirectory) -> None:
    with pytest.raises(UserError, match="has saved no columns of step 3; it skipped none"):
        replay_lines(str(run), 3)
    dump_inputs(run.skipped_batch(7), inputs())
    with pytest.raises(UserError, match="has saved no columns of step 3; it saved 7"):
        replay_lines(str(run), 3)
