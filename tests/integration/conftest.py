"""Runs that several integration tests look at, made once a session."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.runs import recipe, train


@pytest.fixture(scope="session")
def whole_run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four deterministic GRPO steps without a break."""
    folder = tmp_path_factory.mktemp("whole")
    train(recipe(folder, tiny_model), folder / "run")
    return folder / "run"
