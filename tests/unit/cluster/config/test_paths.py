"""Relative paths of a recipe: from the working directory, else from the recipe's folder, and never a guess between."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from cluster.config import Config, ConfigError, Pipeline, load_config, load_run
from cluster.config.loading.paths import named_paths

TREE = {
    "name": "mine",
    "algorithm": "ppo",
    "model": {"path": "models/base", "max_length": 64},
    "critic": {"path": "models/critic"},
    "data": {"path": "rows.jsonl"},
    "reward": {
        "functions": {"own": {"function": "rewards.py:score"}, "exact": {"function": "exact_match"}},
        "models": {"rm": {"path": "models/rm"}},
        "judges": {"better": {"function": "judges.py:prefer"}, "asked": {"path": "models/judge"}},
        "safety": {"functions": {"cost": {"function": "rewards.py:cost"}}, "models": {"harm": {"path": "models/harm"}}},
    },
    "rollout": {"sampling": {"samples_per_prompt": 2, "max_tokens": 16}},
}
FILES = ("rows.jsonl", "rewards.py", "judges.py", *(f"models/{name}" for name in ("base", "critic", "rm", "judge")))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recipe and all that it names; the working directory is its parent."""
    folder = tmp_path / "mine"
    for name in (*FILES, "models/harm"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (folder / "recipe.yaml").write_text(yaml.safe_dump(TREE))
    monkeypatch.chdir(tmp_path)
    return folder


def paths(config: Config) -> dict[str, str]:
    return {".".join(keys): value for keys, value in named_paths(config)}


def test_every_path_beside_the_recipe_is_found_from_the_parent_of_its_folder(project: Path) -> None:
    assert paths(load_config("mine/recipe.yaml")) == {
        "data.path": "mine/rows.jsonl",
        "model.path": "mine/models/base",
        "critic.path": "mine/models/critic",
        "reward.functions.own.function": "mine/rewards.py:score",
        "reward.functions.exact.function": "exact_match",
        "reward.models.rm.path": "mine/models/rm",
        "reward.judges.better.function": "mine/judges.py:prefer",
        "reward.judges.asked.path": "mine/models/judge",
        "reward.safety.functions.cost.function": "mine/rewards.py:cost",
        "reward.safety.models.harm.path": "mine/models/harm",
    }


def test_in_the_recipe_s_folder_and_elsewhere_too(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project.parent / "other").mkdir()
    monkeypatch.chdir(project.parent / "other")
    assert paths(load_config(project / "recipe.yaml"))["data.path"] == f"{project}/rows.jsonl"
    assert paths(load_config("../mine/recipe.yaml"))["reward.functions.own.function"] == f"{project}/rewards.py:score"
    monkeypatch.chdir(project)
    assert paths(load_config("recipe.yaml"))["data.path"] == "rows.jsonl"


def test_the_working_directory_comes_first_and_what_stands_nowhere_is_left_alone(project: Path) -> None:
    (project / "rows.jsonl").rename(project.parent / "rows.jsonl")
    (project / "models" / "base").unlink()
    found = paths(load_config("mine/recipe.yaml"))
    assert (found["data.path"], found["model.path"]) == ("rows.jsonl", "models/base")


def test_two_files_of_one_name_are_no_guess_unless_they_are_the_same(project: Path) -> None:
    (project / "rows.jsonl").write_text('{"prompt": "a"}\n')
    (project.parent / "rows.jsonl").write_text('{"prompt": "b"}\n')
    with pytest.raises(ConfigError) as caught:
        load_config("mine/recipe.yaml")
    assert [str(problem) for problem in caught.value.problems] == [
        f"data.path: rows.jsonl stands in {project.parent} and in mine, beside the recipe, and they differ; rename "
        "one, or write which is meant as a whole path"
    ]
    (project.parent / "rows.jsonl").write_text('{"prompt": "a"}\n')
    assert paths(load_config("mine/recipe.yaml"))["data.path"] == "rows.jsonl"


@pytest.mark.parametrize("value", [".", "/nowhere/rows.jsonl", "s3://bucket/rows.jsonl", "~/rows.jsonl"])
def test_what_is_no_relative_path_stays(value: str, project: Path) -> None:
    assert load_config("mine/recipe.yaml", [f"data.path={value}"]).data.path == value


def test_a_folder_named_like_a_built_in_reward_is_no_reward(project: Path) -> None:
    (project / "exact_match").mkdir()
    assert paths(load_config("mine/recipe.yaml"))["reward.functions.exact.function"] == "exact_match"


def test_stages_of_a_pipeline_find_theirs_and_a_problem_names_its_stage(project: Path) -> None:
    stage = {"name": "sft", "algorithm": "sft", "model": TREE["model"], "data": TREE["data"]}
    (project / "pipeline.yaml").write_text(yaml.safe_dump({"name": "rlhf", "stages": [stage]}))
    found = load_run("mine/pipeline.yaml")
    assert isinstance(found, Pipeline) and found.stage("sft").config.data.path == "mine/rows.jsonl"
    (project.parent / "rows.jsonl").write_text("other\n")
    with pytest.raises(ConfigError, match=r"sft: data\.path: rows\.jsonl stands in"):
        load_run("mine/pipeline.yaml")


def test_what_a_run_saves_names_the_files_from_where_it_was_started(project: Path) -> None:
    """A resume reads the saved config, which lies in another folder."""
    (project.parent / "run").mkdir()
    (project.parent / "run" / "config.yaml").write_text(
        yaml.safe_dump(load_config("mine/recipe.yaml").model_dump(mode="json"))
    )
    assert load_config("run/config.yaml") == load_config("mine/recipe.yaml")


@pytest.mark.parametrize("pipeline", [False, True])
def test_what_a_run_has_saved_reads_from_the_working_directory_whatever_its_own_files_are_called(
    pipeline: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver that is started again reads it: the run's own `samples` are not the rows that it began with."""
    tree = {k: v for k, v in TREE.items() if k not in ("critic", "reward")} | {"algorithm": "dpo"}
    tree |= {"data": {"path": "samples"}, "model": {"path": "policy", "max_length": 64}}
    del tree["rollout"]
    run = tmp_path / "runs" / "mine"
    for folder in (tmp_path, run):
        for name in ("samples", "policy"):
            (folder / name).mkdir(parents=True)
    (run / "lock").touch()
    saved = run / ("pipeline.yaml" if pipeline else "config.yaml")
    saved.write_text(yaml.safe_dump({"name": "mine", "stages": [{**tree, "name": "one"}]} if pipeline else tree))
    monkeypatch.chdir(tmp_path)
    found = load_run(saved)
    found = found.stages[0].config if isinstance(found, Pipeline) else found
    assert paths(found) == {"data.path": "samples", "model.path": "policy"}
