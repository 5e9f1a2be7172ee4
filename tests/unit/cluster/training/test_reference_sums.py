"""The reference's stored sums: measured once, kept through a kill, and never taken for another run's."""

import os

import numpy as np
import pytest

from cluster.run import directory
from cluster.training.parts import reference_sums
from cluster.training.parts.reference_sums import ReferenceSums, weights_identity


def measure_into(seen):
    def measure(rows):
        seen.extend(rows)
        return np.array([[row, -row] for row in rows], np.float64)

    return measure


def quiet(done, of):
    pass


def test_only_what_is_lacking_is_measured_and_a_new_process_finds_it(tmp_path):
    seen: list[int] = []
    sums = ReferenceSums(tmp_path / "r.npz", "one", 10, 2)
    sums.fill([3, 1, 3], measure_into(seen), quiet)
    again = ReferenceSums(tmp_path / "r.npz", "one", 10, 2)
    again.fill([1, 2], measure_into(seen), quiet)
    assert seen == [1, 3, 2]
    assert again.values[[1, 2, 3]].tolist() == [[1, -1], [2, -2], [3, -3]]
    assert again.lacking(range(10)) == [0, 4, 5, 6, 7, 8, 9]


def test_they_are_on_the_disk_before_they_have_their_name(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(directory, "fsync", lambda path: synced.append((path.suffix, (tmp_path / "r.npz").exists())))
    ReferenceSums(tmp_path / "r.npz", "one", 4, 2).fill([0], measure_into([]), quiet)
    assert synced[0] == (".tmp", False) and synced[-1][1]


def test_a_file_of_something_else_is_not_read(tmp_path):
    ReferenceSums(tmp_path / "r.npz", "one", 4, 2).fill([0], measure_into([]), quiet)
    assert ReferenceSums(tmp_path / "r.npz", "two", 4, 2).lacking([0]) == [0]


def test_other_weights_under_the_same_name_are_another_reference(tmp_path):
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"one")
    (tmp_path / "config.json").write_text("{}")
    before = weights_identity(tmp_path)
    assert weights_identity(tmp_path) == before
    weights.write_bytes(b"two")
    os.utime(weights, ns=(0, weights.stat().st_mtime_ns + 1))
    assert weights_identity(tmp_path) != before


def test_a_kill_keeps_what_was_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(reference_sums, "SAVE_EVERY_S", -1.0)
    monkeypatch.setattr(reference_sums, "CHUNK", 2)

    def dies(rows):
        if 4 in rows:
            raise KeyboardInterrupt
        return np.zeros((len(rows), 2))

    with pytest.raises(KeyboardInterrupt):
        ReferenceSums(tmp_path / "r.npz", "one", 6, 2).fill(range(6), dies, quiet)
    assert ReferenceSums(tmp_path / "r.npz", "one", 6, 2).lacking(range(6)) == [4, 5]
    assert [p.name for p in tmp_path.iterdir()] == ["r.npz"]
