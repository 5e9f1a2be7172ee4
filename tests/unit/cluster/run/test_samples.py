"""A step's samples survive the disk: numbers, missing numbers, odd text."""

from __future__ import annotations

import dataclasses
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import UserError
from cluster.run.directory import RunDirectory
from cluster.run.records.samples import SampleRecord, read_samples, write_samples

RECORD = SampleRecord(
    step=12,
    group=48,
    prompt_id=3,
    sample_index=1,
    prompt="2 + 3 = ?",
    response="5 ✓</script>",
    score=0.75,
    parts={"correct": 1.0, "brief": -0.25},
    error=None,
    finish_reason="stop",
    version=11,
    kl=0.125,
    tokens=("5", " ✓", "</script>"),
    logprobs=(-0.5, -1.25, 0.0),  # exact in float32
    token_kl=(0.0, 0.25, 0.125),
    advantages=(1.0, -1.0, 0.5),
    values=(0.5, 0.25, 0.125),
)


def test_samples_read_back_as_they_were_written(tmp_path):
    bare = dataclasses.replace(
        RECORD,
        score=None,
        parts={},
        error="correct: timed out",
        kl=None,
        tokens=(),
        logprobs=(),
        token_kl=(),
        advantages=(),
        values=None,
    )
    file = RunDirectory(tmp_path).samples_file(12)
    assert file.name == "step-000012.parquet"
    write_samples(file, [RECORD, bare])
    assert read_samples(file) == [RECORD, bare]


def test_number_that_is_not_finite_becomes_missing_and_never_zero(tmp_path):
    odd = dataclasses.replace(
        RECORD, score=math.nan, kl=math.inf, parts={"correct": math.nan}, logprobs=(math.nan, -1.0, -math.inf)
    )
    write_samples(tmp_path / "s.parquet", [odd])
    (back,) = read_samples(tmp_path / "s.parquet")
    assert (back.score, back.kl, back.parts, back.logprobs) == (None, None, {"correct": None}, (None, -1.0, None))


def test_half_a_surrogate_pair_does_not_stop_the_run(tmp_path):
    write_samples(tmp_path / "s.parquet", [dataclasses.replace(RECORD, response="a\ud83d")])
    assert read_samples(tmp_path / "s.parquet")[0].response == "a?"


def test_columns_are_the_documented_ones_for_any_reader(tmp_path):
    write_samples(tmp_path / "s.parquet", [RECORD])
    schema = pq.read_schema(tmp_path / "s.parquet")
    assert schema.field("parts").type == pa.map_(pa.string(), pa.float64())
    assert schema.field("logprobs").type == pa.list_(pa.float32())
    assert schema.names[:4] == ["step", "group", "prompt_id", "sample_index"]


def test_column_of_another_length_than_the_tokens_is_refused():
    with pytest.raises(ValueError, match=r"sample 1 of group 48: 2 token_kl for 3 tokens; give one a token, or none"):
        dataclasses.replace(RECORD, token_kl=(0.0, 0.1))


def test_file_that_is_not_parquet_is_named(tmp_path):
    file = tmp_path / "step-000001.parquet"
    file.write_text("torn")
    with pytest.raises(UserError, match=r"step-000001.parquet cannot be read as Parquet"):
        read_samples(file)


def test_no_samples_is_an_empty_file_that_reads_back(tmp_path):
    write_samples(tmp_path / "s.parquet", [])
    assert read_samples(tmp_path / "s.parquet") == []
