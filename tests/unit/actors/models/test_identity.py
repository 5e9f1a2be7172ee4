"""Which model lies in a directory: by the contents of what a loader reads, and by nothing else."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from actors.models import identity
from actors.models.identity import model_hashes


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 8, "transformers_version": "5.19"}))
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "README.md").write_text("a card")
    return tmp_path


@pytest.mark.parametrize(
    "name", ["model.safetensors", "model-00002-of-00002.safetensors", "pytorch_model.bin", "tokenizer.json"]
)
def test_other_bytes_are_another_model_even_of_the_same_length_and_date(model: Path, name: str) -> None:
    file = model / name
    file.write_bytes(b"first!!")
    date = file.stat().st_mtime_ns
    before = model_hashes(model)
    file.write_bytes(b"second!")
    os.utime(file, ns=(date, date))
    after = model_hashes(model)
    assert {key for key in after if after[key] != before[key]} == {name}


@pytest.mark.parametrize(
    "name", ["modeling_own.py", "chat_template.jinja", "merges.txt", "model.safetensors.index.json"]
)
def test_a_file_that_a_loader_would_read_counts_as_soon_as_it_is_there(model: Path, name: str) -> None:
    before = model_hashes(model)
    (model / name).write_text("new")
    assert model_hashes(model).keys() - before.keys() == {name}


def test_dates_cards_and_who_saved_the_config_are_nothing_of_the_model(model: Path) -> None:
    before = model_hashes(model)
    os.utime(model / "model.safetensors", ns=(0, 0))
    (model / "README.md").write_text("another card")
    (model / "trainer_state.json").write_text("{}")
    (model / "config.json").write_text(json.dumps({"transformers_version": "6.0", "hidden_size": 8}))
    assert model_hashes(model) == before
    (model / "config.json").write_text(json.dumps({"hidden_size": 16}))
    assert model_hashes(model) != before


def test_a_file_longer_than_a_chunk_is_hashed_whole(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "CHUNK_BYTES", 5)
    (model / "model.safetensors").write_bytes(b"0123456789ab")
    whole = model_hashes(model)["model.safetensors"]
    (model / "model.safetensors").write_bytes(b"0123456789aX")
    assert model_hashes(model)["model.safetensors"] != whole
    monkeypatch.setattr(identity, "CHUNK_BYTES", 100)
    (model / "model.safetensors").write_bytes(b"0123456789ab")
    assert model_hashes(model)["model.safetensors"] == whole
