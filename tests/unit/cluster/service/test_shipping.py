"""What a job is sent: the checkout, or the recipe's own folder and Raylign; and nothing that it needs stays behind."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from cluster.config import ConfigError
from cluster.errors import UserError
from cluster.service import jobs as service
from cluster.service import shipping
from cluster.service.control import scale_job
from cluster.service.jobs import JobSpec, JobView, train_job
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


def test_a_name_that_means_another_file_in_the_job_is_named(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here it stands beside the recipe alone; the job's working directory has another of that name."""
    (project.parent / "rows.jsonl").write_text("another\n")
    (project.parent / "here").mkdir()
    monkeypatch.chdir(project.parent / "here")
    assert job("../mine/recipe.yaml").working_dir == str(project)
    found = left("../mine/recipe.yaml", working_dir=project.parent)
    assert [line.partition(" is not")[0] for line in found] == ["data.path: rows.jsonl"]


def test_a_copy_in_the_folder_does_as_well(project: Path) -> None:
    """Found in the working directory here, and with the same content in what is sent."""
    (project.parent / "rewards.py").touch()
    assert job("mine/recipe.yaml").working_dir == str(project)


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


class Elsewhere:
    """A cluster whose runs are not on this machine: it keeps what is submitted."""

    def __init__(self) -> None:
        self.sent: list[JobSpec] = []

    def status(self, name: str) -> JobView:
        return JobView(name, "RUNNING", "", "/nowhere/run", 1.0, None)

    def submit(self, spec: JobSpec) -> None:
        self.sent.append(spec)

    def follow(self, name: str, write: Callable[[str], object]) -> JobView:
        write("2 more workers join\n")
        return JobView(name, "SUCCEEDED", "", "/nowhere/run", 1.0, 2.0)


@pytest.mark.parametrize("installed", [False, True])
def test_a_run_elsewhere_is_asked_by_a_job_that_gets_no_folder_of_the_asker_s(
    installed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkout, as with a training; where there is none, the code alone."""
    cluster = Elsewhere()
    monkeypatch.setattr(service, "connect", lambda address: cluster)
    if installed:
        monkeypatch.setattr(shipping, "_code_root", lambda: Path("/site"))
    assert scale_job("mine", 4) == "2 more workers join"
    (spec,) = cluster.sent
    assert spec.entrypoint.endswith(" -m cluster.cli scale /nowhere/run --rollout 4")
    assert spec.working_dir == (None if installed else str(REPO))
    assert spec.code[:4] == (tuple(f"/site/{package}" for package in PACKAGES) if installed else ())
