"""Raylign as a wheel, outside any checkout: what it holds, and that a folder of one's own is begun, checked, trained
and submitted with it. The other packages are those of this environment; nothing is fetched."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures.job_server import JobServer, job_server
from tests.integration.runs import REPO, rows

PACKAGES = ("actors", "learners", "cluster", "serve", "deploy/recipes")
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
TINY = (
    *("steps=2", "model.max_length=512", "model.dtype=float32", "rollout.engine=torch", "learner.backend=torch"),
    *(
        "rollout.prompts_per_step=4",
        "rollout.sampling.max_tokens=8",
        "evaluation.prompts=4",
        "checkpoint.every_steps=2",
    ),
    "evaluation.every_steps=0",
)
NOTE = """
import cluster
with open({path!r}, "w") as file:
    file.write(cluster.__file__)
"""
"""Added to a project's rewards: where they run, whose code is imported."""


def tracked() -> list[str]:
    """This checkout's files, those that are not committed yet too."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=REPO, capture_output=True, text=True, check=True).stdout.splitlines()
    return [name for name in names if (REPO / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: a build leaves files in its tree, and takes along what an earlier one left."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in tracked():
        if name.startswith(tuple(f"{package}/" for package in PACKAGES)) or "/" not in name:
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPO / name, folder / "source" / name)
    build = [*PIP, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder, folder / "source"]
    subprocess.run(build, check=True)
    (built,) = folder.glob("raylign-*.whl")
    return built


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, installed by itself."""
    folder = tmp_path_factory.mktemp("site")
    subprocess.run([*PIP, "install", "--no-deps", "--no-index", "--target", folder, wheel], check=True)
    return folder


@pytest.fixture(scope="module")
def project(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `raylign init` of the wheel makes, in a working directory of its own."""
    work = tmp_path_factory.mktemp("work")
    assert "next:  raylign check proj/recipe.yaml" in raylign(site, work, "init", "proj")
    return work / "proj"


def raylign(site: Path, cwd: Path, *arguments: object, **environment: str) -> str:
    """The installed command; what it said on stdout."""
    done = subprocess.run(
        [sys.executable, str(site / "bin" / "raylign"), *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(site), "RAY_ADDRESS": "", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def test_the_wheel_holds_every_file_of_the_packages_the_recipes_and_the_licence(wheel: Path) -> None:
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == {name for name in tracked() if name.startswith(tuple(f"{package}/" for package in PACKAGES))}
    assert {"cluster/run/report/templates/page.html.j2", "deploy/recipes/gpu/grpo.yaml"} < held
    assert [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith("/licenses/LICENSE")]


def test_what_is_imported_is_the_wheel_s_and_every_recipe_is_offered(site: Path, tmp_path: Path) -> None:
    code = "import actors, learners, cluster, serve; print(*(m.__file__ for m in (actors, learners, cluster, serve)))"
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert [Path(name).parent.parent for name in done.stdout.split()] == [site] * 4
    raylign(site, tmp_path, "init", "pairs", "--recipe", "gpu/dpo")
    assert (tmp_path / "pairs" / "pairs.jsonl").is_file()


def test_a_folder_is_checked_and_trained(site: Path, project: Path, tiny_model: Path, tmp_path: Path) -> None:
    given = (*TINY, f"model.path={tiny_model}")
    found = json.loads(raylign(site, project.parent, "check", "proj/recipe.yaml", *given, "--json"))
    assert (found["ok"], found["runs"][0]["data"]["rows"]["to_train_on"]) == (True, 200)
    seen = tmp_path / "imported"
    with (project / "rewards.py").open("a") as file:
        file.write(NOTE.format(path=str(seen)))
    raylign(site, project.parent, "train", "proj/recipe.yaml", *given)
    run = project.parent / "runs" / "proj"
    assert [row["step"] for row in rows(run) if "loss" in row or "policy/loss" in row] == [1, 2]
    assert (run / "policy" / "step-2" / "model.safetensors").is_file()
    assert "<title>proj" in (run / "report.html").read_text()
    assert Path(seen.read_text()).is_relative_to(site)


@pytest.fixture(scope="module")
def server() -> Iterator[JobServer]:
    with job_server(num_cpus=4) as started:
        yield started


def test_a_folder_is_submitted_with_the_wheel_s_code(
    server: JobServer, site: Path, project: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """The cluster has another Raylign, this checkout; the job runs the one that submitted it."""
    seen, run = tmp_path / "imported", tmp_path / "run"
    with (project / "rewards.py").open("a") as file:
        file.write(NOTE.format(path=str(seen)))
    told = raylign(
        *(site, project.parent, "submit", "proj/recipe.yaml", *TINY, f"model.path={tiny_model}"),
        *("--address", server.address, "--run-dir", run, "--id", "from-a-wheel", "--follow"),
        **server.environment,
    )
    assert f"from-a-wheel submitted to {server.address}; its run directory is {run}" in told
    assert [row["step"] for row in rows(run)][-1] == 2
    shipped = Path(seen.read_text())
    assert "py_modules_files" in shipped.parts and not shipped.is_relative_to(site)
