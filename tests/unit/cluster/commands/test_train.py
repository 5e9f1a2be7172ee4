"""`raylign train` as it ends: what signals do."""

import signal
from pathlib import Path

import pytest
import yaml

from cluster.commands.train import _interrupt, _limits, _loaded, _resuming
from cluster.run.directory import RunDirectory
from cluster.run.stages import PipelineDirectory
from tests.fixtures.configs import GRPO


def test_a_run_is_interrupted_once_whatever_comes_after():
    """A second KeyboardInterrupt, within what the first one unwinds, once left a lock held for ever."""
    before = {number: signal.signal(number, _interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(GRPO)
    return path


def test_a_driver_is_resumed_with_the_settings_that_its_run_saved_whatever_became_of_the_file(recipe, tmp_path):
    run = tmp_path / "run"
    loaded = _loaded(recipe, ["seed=3"])
    assert _resuming(loaded, str(run), ["train", "recipe.yaml"]) is None, "there is nothing to resume yet"
    RunDirectory.create(run).write_config(loaded)
    recipe.write_text("name: another experiment")
    resumed = _resuming(loaded, str(run), ["train", "recipe.yaml", "seed=3"])
    assert resumed == ["train", str(run / "config.yaml"), "--run-dir", str(run), "--resume"]
    assert _loaded(Path(resumed[1]), []) == loaded


def test_a_resume_that_died_before_it_saved_its_new_settings_is_started_with_them_again(recipe, tmp_path):
    run = tmp_path / "run"
    RunDirectory.create(run).write_config(_loaded(recipe, []))
    arguments = ["train", "recipe.yaml", "steps=9", "--run-dir", str(run), "--resume"]
    assert _resuming(_loaded(recipe, ["steps=9"]), str(run), arguments) == arguments


def test_a_pipeline_is_resumed_with_what_it_saved_and_as_often_as_its_most_patient_stage_says(tmp_path):
    file, run = tmp_path / "pipeline.yaml", tmp_path / "run"
    patient = {"name": "two", "recovery": {"driver_failures": 50, "backoff_s": 7}}
    defaults = yaml.safe_load(GRPO)
    del defaults["name"]
    file.write_text(yaml.safe_dump({"name": "both", "defaults": defaults, "stages": [{"name": "one"}, patient]}))
    loaded = _loaded(file, [])
    assert _limits(loaded) == (50, 7.0)
    PipelineDirectory.create(run).write(loaded)
    resumed = _resuming(loaded, str(run), ["train", "pipeline.yaml"])
    assert resumed == ["train", str(run / "pipeline.yaml"), "--run-dir", str(run), "--resume"]
    assert _loaded(Path(resumed[1]), []) == loaded


def test_input_that_the_driver_will_refuse_has_nothing_to_resume(tmp_path):
    assert _loaded(tmp_path / "missing.yaml", []) is None
    assert _resuming(None, None, ["train", "missing.yaml"]) is None
