"""`check` and `train` on a pipeline: every stage is looked at with the model its chain starts from, before any runs."""

import copy
import json

import pytest
import yaml

from cluster.commands.check import check, problems
from cluster.commands.train import drive
from cluster.config import ConfigError, load_run
from cluster.inspect.machine import GIB, Machine
from cluster.inspect.pipeline import examine_stages, problems_of
from tests.fixtures.tiny_model import make_tiny_model
from tests.unit.cluster.config.test_pipeline import TREE

LARGE = Machine(cpus=4, memory=64 * GIB, available=64 * GIB, gpus=())


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def file(tmp_path, model):
    """TREE on the tiny model with a window that its task fits in."""
    tree = copy.deepcopy(TREE)
    tree["defaults"]["model"] = {"path": str(model), "max_length": 256}
    tree["defaults"]["learner"]["backend"] = "torch"
    tree["stages"][2]["rollout"]["engine"] = "torch"
    path = tmp_path / "pipeline.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


def test_stages_are_examined_with_the_model_that_their_chain_starts_from(file, model, tmp_path):
    found = examine_stages(load_run(file), tmp_path / "run", LARGE)
    assert problems_of(found) == []
    assert {str(seen.model.path) for seen in found.values()} == {str(model.resolve())}
    # The tiny model has no reward head, and a run of its own would say so.
    assert f"reward.models.rm.path: checked with {model}, which stage judge starts from" in found["ppo"].notes
    assert found["ppo"].rewards.answered == {"rule": 1.0}
    assert {seen.data.rows["to train on"] > 0 for seen in found.values()} == {True}


def test_problems_of_every_stage_are_found_before_any_runs(file, tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "a"}) + "\n")
    overrides = [
        "stages.judge.model.max_length=2000",
        f"stages.sft.data={{path: {tmp_path}/rows.jsonl}}",
        "stages.ppo.reward.functions.rule.function=exact_mach",
    ]
    tree = yaml.safe_load(file.read_text())
    del tree["defaults"]["data"]
    for stage in tree["stages"]:
        stage["data"] = TREE["defaults"]["data"]
    file.write_text(yaml.safe_dump(tree))
    said = [str(problem) for problem in problems(load_run(file, overrides), str(tmp_path / "run"))]
    assert len(said) == 3
    assert said[0].startswith(f"sft: {tmp_path}/rows.jsonl:1: no column 'completion'")
    assert said[1] == "judge: model.max_length: must be at most the model's 1024 positions, got 2000"
    assert said[2].startswith("ppo: reward.functions: 'rule'") and "exact_match" in said[2]
    with pytest.raises(ConfigError, match=r"pipeline.yaml: 3 problems\n  sft: "):
        drive(file, overrides, run_dir=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists(), "nothing began"


def test_check_prints_every_stage_and_starts_nothing(file, tmp_path, capsys):
    check(file, ["stages.sft.steps=5"], run_dir=str(tmp_path / "run"), plan_only=True)
    out = capsys.readouterr().out
    assert [f"stage {name} " in out for name in ("sft", "judge", "ppo")] == [True] * 3
    assert not (tmp_path / "run").exists()


def test_a_model_that_nobody_has_is_told_once_for_each_stage_that_starts_from_it(file, tmp_path):
    with pytest.raises(ConfigError) as raised:
        check(file, [f"model.path={tmp_path}/gone"], run_dir=str(tmp_path / "run"))
    assert [p.path for p in raised.value.problems] == ["sft: model.path", "judge: model.path", "ppo: model.path"]
