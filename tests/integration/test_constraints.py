"""`constraints/cuda.txt` is what pip's own resolver makes of the CUDA stack, on the Pythons that it is for.

Nothing of the stack is installed or downloaded but metadata, so this runs on any machine with a package index: a pip of
one version, for older ones download every wheel (4 GB) to look at it, resolves for Linux x86_64 in a dry run. Left out:
the CPU stack, which tests/unit/test_constraints.py compares with what is installed.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
CUDA = ROOT / "constraints" / "cuda.txt"
PIP = "pip==26.3"
PYTHONS = {"3.11": "3.11.14", "3.12": "3.12.12"}
EXTRAS = ("cuda", "test", "lint", "docs")
TAGS = (*(f"manylinux_2_{minor}_x86_64" for minor in range(35, 4, -1)), "manylinux2014_x86_64", "linux_x86_64")
SOURCE_ONLY = ("cellpylib", "deepspeed", "pycosat", "zss")
"""The index has no wheel of these, and for another platform pip takes wheels alone."""
MINUTES = 5

# pip judges `python_version` in a requirement by the Python that it runs on, whatever --python-version says.
ON_ANOTHER_PYTHON = """
import sys
from pip._vendor.packaging import markers
own, full = markers.default_environment, sys.argv.pop(1)
told = {"python_version": full.rpartition(".")[0], "python_full_version": full, "implementation_version": full}
markers.default_environment = lambda: own() | told
from pip._internal.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def named(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins() -> dict[str, str]:
    lines = [line.split("==") for line in CUDA.read_text().splitlines() if not line.startswith("#")]
    return {named(name): version for name, version in lines}


def requirements() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    return [*project["dependencies"], *(requirement for extra in EXTRAS for requirement in extras[extra])]


def pip(*words: str, path: Path | None = None) -> str:
    environment = os.environ | ({"PYTHONPATH": str(path)} if path else {})
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


def stand_in(package: str, folder: Path, path: Path) -> None:
    """A wheel that holds a source distribution's metadata alone."""
    found = pip("--dry-run", "--ignore-installed", "--no-deps", "--report", "-", package, path=path)
    about = json.loads(found)["install"][0]["metadata"]
    info = f"{about['name'].replace('-', '_')}-{about['version']}"
    lines = ["Metadata-Version: 2.1", f"Name: {about['name']}", f"Version: {about['version']}"]
    lines += [f"Provides-Extra: {extra}" for extra in about.get("provides_extra", ())]
    lines += [f"Requires-Dist: {requirement}" for requirement in about.get("requires_dist", ())]
    with zipfile.ZipFile(folder / f"{info}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{info}.dist-info/METADATA", "\n".join(lines) + "\n")
        wheel.writestr(f"{info}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}.dist-info/RECORD", "")


@pytest.fixture(scope="module")
def resolving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[subprocess.Popen[str], Path]]]:
    """By Python, a resolution under way and where its report will be. They wait for the index, so both at once."""
    folder = tmp_path_factory.mktemp("resolve")
    own, wheels = folder / "pip", folder / "wheels"
    wheels.mkdir()
    pip("--target", str(own), PIP)
    for name in SOURCE_ONLY:
        stand_in(f"{name}=={pins()[name]}", wheels, own)
    where = [word for tag in TAGS for word in ("--platform", tag)]
    started: dict[str, tuple[subprocess.Popen[str], Path]] = {}
    for python, full in PYTHONS.items():
        report = folder / f"{python}.json"
        words = ["install", "--quiet", "--disable-pip-version-check", "--dry-run", "--ignore-installed"]
        words += ["--use-feature=fast-deps", "--only-binary=:all:", "--python-version", full, *where]
        words += ["--target", str(folder / "nothing"), "--find-links", str(wheels), "--report", str(report)]
        # === takes no build of another label, such as a +cpu one in a folder that pip's settings name.
        words += ["-c", str(CUDA), *requirements(), f"torch==={pins()['torch']}"]
        command = [sys.executable, "-c", ON_ANOTHER_PYTHON, full, *words]
        environment = os.environ | {"PYTHONPATH": str(own)}
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        started[python] = process, report
    yield started
    for process, _ in started.values():
        process.kill()
        process.wait()
    assert not (folder / "nothing").exists(), "nothing was installed"


@pytest.fixture(params=PYTHONS)
def resolved(
    request: pytest.FixtureRequest, resolving: dict[str, tuple[subprocess.Popen[str], Path]]
) -> tuple[str, dict[str, Any]]:
    process, report = resolving[request.param]
    said, _ = process.communicate(timeout=MINUTES * 60)
    assert process.returncode == 0, said
    return request.param, json.loads(report.read_text())


@pytest.mark.timeout(MINUTES * 60 + 60)
def test_pip_resolves_the_cuda_stack_to_exactly_the_versions_that_are_pinned(
    resolved: tuple[str, dict[str, Any]],
) -> None:
    python, report = resolved
    assert report["environment"]["python_version"] == python, "markers were judged as on that Python"
    found = {named(each["metadata"]["name"]): each["metadata"]["version"] for each in report["install"]}
    assert found == pins()
    expected = {"torch": "2.13.0", "vllm": "0.29.0", "deepspeed": "0.19.8", "ray": "2.60.0"}
    assert {name: found[name] for name in expected} == expected
    assert int(found["protobuf"].partition(".")[0]) < 7
