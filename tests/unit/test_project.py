"""What a contributor meets first keeps its word: the hooks run what CI runs, and the pages name what exists."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def recipe_of(target: str) -> list[str]:
    """The commands of a make target, the environment's programs by their path."""
    (lines,) = re.findall(rf"(?m)^{target}: .*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text())
    return [line.strip().replace("$(BIN)", ".venv/bin") for line in lines.splitlines()]


def test_lint_checks_style_layout_and_types_and_the_hooks_do_the_same() -> None:
    lint = recipe_of("lint")
    assert [command.split("/")[-1] for command in lint] == ["ruff check .", "ruff format --check .", "mypy"]
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert local["repo"] == "local"
    assert [hook["entry"] for hook in local["hooks"]] == lint
    assert all(hook["language"] == "system" and hook["pass_filenames"] is False for hook in local["hooks"])


def test_ci_lints_before_it_tests() -> None:
    steps = re.findall(r"(?m)^(?:exec )?make (\w+)$", (ROOT / ".ci" / "run").read_text())
    assert steps == ["lint", "test"]


def test_the_licence_is_the_one_that_the_package_names() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert PROJECT["license"] == "Apache-2.0"
    assert "Apache License\n" in text and "Version 2.0, January 2004" in text and "END OF TERMS AND CONDITIONS" in text
    assert re.search(r"Copyright \d{4} Raylign contributors", text)


def test_the_page_for_contributors_is_one_page_and_names_files_and_targets_that_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert len(text.splitlines()) <= 80
    named = set(re.findall(r"`([\w./]+/[\w.]+(?:\.py)?)`", text)) | set(re.findall(r"\]\((\w+(?:\.md)?)\)", text))
    assert {"actors/transports/interface.py", "learners/methods/presets.py", "CHANGELOG.md", "LICENSE"} <= named
    assert [name for name in named if not (ROOT / name).exists()] == []
    targets = set(re.findall(r"make ([\w-]+)", text))
    assert {"lint", "test-fast", "test", "chaos", "soak", "learn"} <= targets
    known = set(re.findall(r"(?m)^\.PHONY: (.*)$", (ROOT / "Makefile").read_text())[0].split())
    assert targets - {"target"} <= known


def test_the_changelog_begins_with_what_is_not_released_and_knows_the_version() -> None:
    headings = re.findall(r"(?m)^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text())
    assert headings == ["Unreleased", PROJECT["version"]]
