"""The run that disturbed ones are held against, made once a session."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.harness import CHANGES
from tests.integration.runs import recipe, train


@pytest.fixture(scope="session")
def undisturbed(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run in which nothing dies."""
    folder = tmp_path_factory.mktemp("undisturbed")
    train(recipe(folder, tiny_model, **CHANGES), folder / "run")
    return folder / "run"
