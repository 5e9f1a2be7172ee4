"""Fixtures every suite may use. Models are made once a session."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fixtures.tiny_model import make_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer model with tied embeddings."""
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")
