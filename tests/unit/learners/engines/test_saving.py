"""Tensor files written beside training: what was, not what has become of it since."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from learners.engines import saving
from learners.engines.saving import LaterWriter, write_now


def wait(writer: LaterWriter) -> dict:
    for future in writer._writing.values():
        future.exception()
    return writer.written()


def test_a_file_holds_the_tensors_as_they_were_however_they_change_meanwhile(tmp_path: Path, monkeypatch) -> None:
    go_on, real = threading.Event(), saving.save_file
    monkeypatch.setattr(saving, "save_file", lambda *given: go_on.wait(20) and real(*given))
    writer = LaterWriter()
    moving = torch.arange(4.0)
    writer.begin()
    writer({"a": moving, "b": torch.ones(2, dtype=torch.bfloat16)}, tmp_path / "rank-0.safetensors", {"of": "a"})
    moving.add_(100.0)
    assert writer.written() is None
    go_on.set()
    facts = wait(writer)[tmp_path / "rank-0.safetensors"]
    found = load_file(tmp_path / "rank-0.safetensors")
    assert found["a"].tolist() == [0.0, 1.0, 2.0, 3.0] and found["b"].dtype == torch.bfloat16
    with safe_open(tmp_path / "rank-0.safetensors", "pt") as file:
        assert file.metadata() == {"of": "a"}
    content = (tmp_path / "rank-0.safetensors").read_bytes()
    assert facts == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_the_next_checkpoint_uses_the_copies_again_and_follows_what_came_and_went(tmp_path: Path) -> None:
    writer, a = LaterWriter(), torch.zeros(3)
    places = []
    for step, tensors in enumerate([{"a": a}, {"a": a, "moment": torch.ones(2)}, {"a": torch.zeros(5)}]):
        a.add_(1.0)
        path = tmp_path / f"step-{step}" / "policy" / "rank-0.safetensors"
        path.parent.mkdir(parents=True)
        writer.begin()
        writer(tensors, path, {})
        assert list(wait(writer)) == [path]
        assert {n: t.tolist() for n, t in load_file(path).items()} == {n: t.tolist() for n, t in tensors.items()}
        places.append(writer._copies["policy/rank-0.safetensors"]["a"].data_ptr())
    assert places[0] == places[1]


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    writer = LaterWriter()
    writer.begin()
    writer({"a": torch.ones(1)}, tmp_path / "not there" / "rank-0.safetensors", {})
    with pytest.raises(OSError, match=r"rank-0.safetensors could not be written"):
        wait(writer)
    writer.begin()
    assert writer.written() == {}, "the next checkpoint is another matter"


def test_views_of_one_buffer_are_written_each_by_itself(tmp_path: Path) -> None:
    whole = torch.arange(6.0)
    writer = LaterWriter()
    for write, name in ((write_now, "now"), (writer, "later")):
        write({"a": whole[:2], "b": whole[2:]}, tmp_path / f"{name}.safetensors", {"of": "a"})
    wait(writer)
    assert (tmp_path / "now.safetensors").read_bytes() == (tmp_path / "later.safetensors").read_bytes()
