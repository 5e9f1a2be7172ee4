"""Fixtures every suite may use. Models are made once a session."""

from __future__ import annotations

import signal
from pathlib import Path

import hypothesis
import pytest

from tests.fixtures.tiny_model import make_tiny_model

# Started in the background of a shell, pytest and all it starts would ignore the Ctrl-C that tests send.
signal.signal(signal.SIGINT, signal.default_int_handler)

# No example has a deadline: machines are shared, and a time is no property of the code.
hypothesis.settings.register_profile("raylign", deadline=None)
hypothesis.settings.load_profile("raylign")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer model with tied embeddings."""
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")
