"""Which policy is served, and when a directory is refused. Files are written by hand: no model, no engine."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from serve.policy import ServeInputError, find_policy

DIGEST = "0f3c9a1b2d4e5f60"


def _weights(path: Path, values: int = 4) -> None:
    """A safetensors file with one float32 tensor."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [values], "data_offsets": [0, 4 * values]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4 * values))


def _model(directory: Path, record: dict | None = None) -> Path:
    directory.mkdir(parents=True)
    (directory / "config.json").write_text("{}")
    (directory / "tokenizer.json").write_text("{}")
    _weights(directory / "model.safetensors")
    if record is not None:
        (directory / "raylign.json").write_text(json.dumps(record))
    return directory


def _exported(run: Path, step: int) -> Path:
    return _model(run / "policy" / f"step-{step}", {"run": "first", "step": step, "digest": DIGEST})


def test_highest_step_is_served_by_number_not_by_name(tmp_path: Path) -> None:
    for step in (9, 40, 100):
        _exported(tmp_path, step)
    policy = find_policy(tmp_path)
    assert (policy.step, policy.path) == (100, str(tmp_path / "policy" / "step-100"))


def test_version_is_step_and_twelve_digits_of_the_digest_and_the_model_id_names_the_step(tmp_path: Path) -> None:
    _exported(tmp_path, 40)
    policy = find_policy(tmp_path)
    assert policy.version == "step-40/0f3c9a1b2d4e"
    assert policy.model_id == "first-step-40"


def test_asked_for_step_is_served_and_an_unknown_one_lists_those_there_are(tmp_path: Path) -> None:
    _exported(tmp_path, 10)
    _exported(tmp_path, 20)
    assert find_policy(tmp_path, step=10).step == 10
    with pytest.raises(ServeInputError, match="no policy of step 15; it has: 10, 20"):
        find_policy(tmp_path, step=15)


def test_plain_model_directory_is_unversioned_and_named_after_its_folder(tmp_path: Path) -> None:
    policy = find_policy(_model(tmp_path / "My Model+1"))
    assert (policy.version, policy.model_id) == ("unversioned", "My-Model-1")


def test_exported_policy_without_a_record_is_served_as_unversioned_under_the_runs_name(tmp_path: Path) -> None:
    _model(tmp_path / "ppo" / "policy" / "step-3")
    policy = find_policy(tmp_path / "ppo")
    assert (policy.version, policy.model_id) == ("unversioned", "ppo")


def test_run_without_a_policy_says_how_to_get_one(tmp_path: Path) -> None:
    (tmp_path / "policy").mkdir()
    with pytest.raises(ServeInputError, match=r"no policy to serve.*checkpoint\.export: true"):
        find_policy(tmp_path)
    with pytest.raises(ServeInputError, match="is no directory"):
        find_policy(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("config.json", "config.json is missing"),
        ("tokenizer.json", "no tokenizer"),
        ("model.safetensors", "model.safetensors is missing"),
    ],
)
def test_missing_file_is_named(tmp_path: Path, name: str, said: str) -> None:
    (_exported(tmp_path, 1) / name).unlink()
    with pytest.raises(ServeInputError, match=said):
        find_policy(tmp_path)


def test_weights_cut_short_are_noticed_by_their_length(tmp_path: Path) -> None:
    file = _exported(tmp_path, 1) / "model.safetensors"
    whole = file.stat().st_size
    with file.open("r+b") as opened:
        opened.truncate(whole - 1)
    with pytest.raises(ServeInputError, match=rf"cut short \({whole - 1} of {whole} bytes\)"):
        find_policy(tmp_path)


def test_every_shard_of_the_index_must_be_there(tmp_path: Path) -> None:
    directory = _exported(tmp_path, 1)
    shards = {"a": "part-1.safetensors", "b": "part-2.safetensors"}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    _weights(directory / "part-1.safetensors")
    with pytest.raises(ServeInputError, match=r"incomplete: part-2\.safetensors is missing;"):
        find_policy(tmp_path)
    _weights(directory / "part-2.safetensors")
    assert find_policy(tmp_path).step == 1


def test_torn_record_is_an_error_not_an_unversioned_policy(tmp_path: Path) -> None:
    (_exported(tmp_path, 1) / "raylign.json").write_text('{"run": "first"}')
    with pytest.raises(ServeInputError, match=r'must be an object with "run", "step" and "digest"'):
        find_policy(tmp_path)
