"""What a job is sent: the checkout, or the recipe's own folder and Raylign; and nothing that it needs stays behind."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from cluster.config import ConfigError
from cluster.errors import UserError
from cluster.service import shipping
from cluster.service.jobs import JobSpec, train_job
from cluster.service.shipping import PACKAGES, checkout_root, code_beside, folder_of

REPO = Path(__file__).resolve().parents[4]
ADDRESS = "http://127.0.0.1:8265"
TREE = {
    "name": "mine",
    "algorithm": "grpo",
    "model": {"path": "models/base", "max_length": 64},
    "data": {"path": "rows.jsonl"},
    "reward": {"functions": {"own": {"function": "rewards.py:score"}}},
    "rollout": {"sampling": {"samples_per_prompt": 2, "max_tokens": 16}},
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recipe and its files; the working directory is its parent."""
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in ("rows.jsonl", "rewards.py"):
        (folder / name).touch()
    (folder / "recipe.yaml").write_text(yaml.safe_dump(TREE))
    monkeypatch.chdir(tmp_path)
    return folder


def job(recipe: str, *overrides: str, working_dir: Path | None = None) -> JobSpec:
    return train_job(Path(recipe), overrides, address=ADDRESS, run_dir="/runs/x", working_dir=working_dir)


def left(recipe: str, *overrides: str, working_dir: Path | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        job(recipe, *overrides, working_dir=working_dir)
    return [str(problem) for problem in caught.value.problems]


def test_the_checkout_is_found_from_the_code_and_sent_whole_with_a_recipe_in_it() -> None:
    assert checkout_root() == REPO and folder_of(REPO / "deploy" / "recipes" / "sft.yaml") == REPO
    spec = job(str(REPO / "deploy" / "recipes" / "sft.yaml"))
    assert (spec.working_dir, spec.code) == (str(REPO), ())
    assert " -m cluster.cli train deploy/recipes/sft.yaml ray.address=auto " in spec.entrypoint


def test_another_project_s_folder_is_no_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where packages are installed into a folder that has a pyproject.toml of its own."""
    monkeypatch.setattr(shipping, "_code_root", lambda: tmp_path)
    assert checkout_root() is None
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "theirs"\n')
    assert checkout_root() is None
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "raylign"\n')
    assert checkout_root() == tmp_path


def test_elsewhere_the_recipe_s_folder_is_sent_and_raylign_beside_it(project: Path) -> None:
    spec = job("mine/recipe.yaml")
    assert spec.working_dir == str(project)
    assert " -m cluster.cli train recipe.yaml ray.address=auto --run-dir /runs/x" in spec.entrypoint
    assert spec.code[: len(PACKAGES)] == tuple(str(REPO / package) for package in PACKAGES)
    assert all(Path(module).is_dir() for module in spec.code)


def test_what_the_installer_wrote_goes_along_so_that_the_job_knows_its_verbs(monkeypatch: pytest.MonkeyPatch) -> None:
    notes = "site/raylign-0.1.0.dist-info"
    installed = SimpleNamespace(
        files=[File("site/cluster/cli.py"), File(f"{notes}/RECORD"), File(f"{notes}/l/LICENSE")]
    )
    monkeypatch.setattr(shipping.metadata, "distribution", lambda name: installed)
    assert code_beside(None)[len(PACKAGES) :] == ("/lib/site/raylign-0.1.0.dist-info",)

    def missing(name: str) -> None:
        raise shipping.metadata.PackageNotFoundError

    monkeypatch.setattr(shipping.metadata, "distribution", missing)
    assert len(code_beside(None)) == len(PACKAGES)


class File:
    """A file of an installed package, as importlib.metadata lists it."""

    def __init__(self, name: str) -> None:
        self.parent, self._name = Path(name).parent, name

    def locate(self) -> Path:
        return Path("/lib") / self._name


def test_a_file_outside_the_folder_is_named_before_anything_is_sent(project: Path) -> None:
    (project / "rows.jsonl").rename(project.parent / "rows.jsonl")
    wrong = f"is not in {project}, which is what the job gets; copy it in there, give a --working-dir that holds both, "
    assert left("mine/recipe.yaml") == [f"data.path: rows.jsonl {wrong}or write a whole path that every node sees"]
    found = left("mine/recipe.yaml", "data.path=../rows.jsonl")
    assert found == [f"data.path: ../rows.jsonl {wrong}or write a whole path that every node sees"]
    whole = job("mine/recipe.yaml", f"data.path={project.parent}/rows.jsonl")
    assert whole.working_dir == str(project), "a whole path is the cluster's to see"


def test_a_folder_that_holds_both_may_be_given(project: Path) -> None:
    (project / "rows.jsonl").rename(project.parent / "rows.jsonl")
    spec = job("mine/recipe.yaml", working_dir=Path("."))
    assert spec.working_dir == str(project.parent) and " train mine/recipe.yaml " in spec.entrypoint
    with pytest.raises(UserError, match=r"mine/recipe\.yaml is outside .*other"):
        (project.parent / "other").mkdir()
        job("mine/recipe.yaml", working_dir=project.parent / "other")


def test_a_file_that_means_another_one_in_the_job_is_named(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found in the working directory here; there the working directory is another."""
    (project / "deep").mkdir()
    (project / "deep" / "rows.jsonl").touch()
    (project / "deep" / "rewards.py").touch()
    (project / "recipe.yaml").rename(project / "deep" / "recipe.yaml")
    monkeypatch.chdir(project)
    assert [line.split(" ")[0] for line in left("deep/recipe.yaml")] == ["data.path:", "reward.functions.own.function:"]


@pytest.mark.parametrize("folder", ["runs", "build", ".venv"])
def test_what_lies_in_a_folder_that_is_not_sent_is_named(folder: str, project: Path) -> None:
    (project / folder / "old" / "policy").mkdir(parents=True)
    assert left("mine/recipe.yaml", f"model.path={folder}/old/policy") == [
        f"model.path: {folder}/old/policy lies in {folder}/, which is not sent to the job; move it, or write a whole "
        "path that every node sees"
    ]


def test_a_recipe_in_a_folder_that_is_not_sent_is_named_too(project: Path) -> None:
    (project / "runs").mkdir()
    (project / "recipe.yaml").rename(project / "runs" / "config.yaml")
    found = left("mine/runs/config.yaml", working_dir=project)
    assert "lies in runs/, which is not sent to the job; copy it out of there" in found


def test_stages_are_named_with_their_problem(project: Path) -> None:
    stage = {"name": "sft", "algorithm": "sft", "model": TREE["model"], "data": {"path": "../far.jsonl"}}
    (project.parent / "far.jsonl").touch()
    (project / "p.yaml").write_text(yaml.safe_dump({"name": "p", "stages": [stage]}))
    assert [line.partition(" is not")[0] for line in left("mine/p.yaml")] == ["sft: data.path: ../far.jsonl"]


def test_a_name_that_leads_nowhere_here_is_left_to_the_cluster(project: Path) -> None:
    assert not os.path.exists("models/base")
    assert job("mine/recipe.yaml").working_dir == str(project)
