"""The types that cross a process: what goes in comes out, rows stay with their prompt, spans with their row."""

import pickle

import numpy as np
import pytest

from actors.types import (
    FinishReason,
    PolicyVersion,
    Prompt,
    Sample,
    SampleBatch,
    SamplingSettings,
    Score,
    ScoreBatch,
    WeightBucket,
    WeightSummary,
    digest_buckets,
    sample_seed,
)
from learners.methods.method import TokenColumn, TokenDetails, UpdateResult, assemble
from tests.fixtures.columns import batch_of, sample


def same(a, b) -> bool:
    """Equal field by field; arrays by dtype, shape and value."""
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    if hasattr(a, "__slots__"):
        return type(a) is type(b) and all(same(getattr(a, f), getattr(b, f)) for f in a.__slots__)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, tuple) and a and hasattr(a[0], "__slots__"):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


ONE = sample(7, 0, [5, 6], [8, 9], logprobs=[-0.5, -1.5], turns=[0, -1], spans=((0, 3), (1, 4)))
DETAILS = TokenDetails(0, ONE, np.zeros(2, np.float32), None, np.ones(2, np.float32), None)


@pytest.mark.parametrize(
    "value",
    [
        Prompt(3, (1, 2), 9, {"answer": "4"}),
        PolicyVersion(2, "ab"),
        WeightSummary("ab", 12),
        SamplingSettings(temperature=0.7, stop=("\n",)),
        ONE,
        batch_of(ONE),
        Score(None, {"task": float("inf")}, "timed out"),
        ScoreBatch(np.array([1.0, np.nan]), {"task": np.array([1.0, np.nan])}, {1: "timed out"}),
        WeightBucket(0, True, ("w",), ((2,),), ("bfloat16",), np.array([1, 2, 3, 4], np.uint8)),
        TokenColumn(np.array([1, 0]), np.array([0.5, 0.25], np.float32)),
        UpdateResult({"policy/loss": 0.5}, True, 0, 1.0, (DETAILS,)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_frozen_type_comes_back_from_pickle_as_it_was(value):
    assert same(pickle.loads(pickle.dumps(value)), value)
    with pytest.raises(AttributeError):
        setattr(value, type(value).__slots__[0], None)


def test_a_row_is_a_view_with_its_own_prompt_tokens_and_spans():
    batch = batch_of(sample(7, 0, [5, 6], [8]), sample(3, 0, [4], [9, 9], spans=((0, 1), (1, 2))), ONE)
    assert batch.groups.tolist() == [7, 3] and batch.group_rows.tolist() == [0, 1, 0]
    assert batch.prompt_tokens.tolist() == [5, 6, 4] and batch.offsets.tolist() == [0, 1, 3, 5]
    assert batch.spans.tolist() == [[0, 0, 1], [1, 0, 1], [1, 1, 2], [2, 0, 3], [2, 1, 4]]
    assert same(batch.sample(2), ONE)
    assert batch.prompt_of(1).tolist() == [4] and batch.response_of(1).tolist() == [9, 9]


def test_a_batch_of_rows_gives_the_rows_back_an_empty_response_included():
    rows = [sample(1, 0, [5], []), sample(1, 1, [5], [6], finish=FinishReason.LENGTH), sample(2, 0, [4, 4], [7, 8])]
    batch = SampleBatch.from_samples(rows)
    assert all(map(same, batch, rows))
    assert batch.lengths.tolist() == [0, 1, 2]
    assert same(batch.take([2, 0]), SampleBatch.from_samples([rows[2], rows[0]]))
    assert len(SampleBatch.from_samples([])) == 0


@pytest.mark.parametrize("groups", [[[1, 1], [2], [3, 3]], [[1, 2], [2, 1], [3]]], ids=["whole", "split"])
def test_joined_batches_are_the_batch_of_all_rows_and_split_groups_become_one(groups):
    parts = [
        [sample(g, 10 * p + i, [g, g], [g + i] * (i + 1), spans=((0, p), (1, p + 1))) for i, g in enumerate(part)]
        for p, part in enumerate(groups)
    ]
    joined = SampleBatch.concat([SampleBatch.from_samples(part) for part in parts])
    assert same(joined, SampleBatch.from_samples([s for part in parts for s in part]))
    assert joined.groups.tolist() == [1, 2, 3]
    assert joined.spans[:, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    if groups[0] == [1, 2]:
        assert joined.group_rows.tolist() == [0, 1, 1, 0, 2]


def test_joined_scores_move_their_errors_with_their_rows_and_keep_no_score_apart_from_zero():
    first = ScoreBatch(np.array([1.0, np.nan]), {"task": np.array([1.0, np.nan])}, {1: "raised"})
    second = ScoreBatch(np.array([np.nan, 0.0]), {"task": np.array([0.5, 0.0])}, {0: "timed out"})
    joined = ScoreBatch.concat([first, second])
    assert joined.errors == {1: "raised", 2: "timed out"}
    assert joined.score(1).value is None and joined.score(1).error == "raised"
    assert joined.score(3) == Score(0.0, {"task": 0.0})
    assert joined.parts["task"][2] == 0.5
    with pytest.raises(ValueError, match="different parts"):
        ScoreBatch.concat([first, ScoreBatch(np.zeros(1), {"other": np.zeros(1)})])


def test_a_samples_seed_depends_on_run_group_and_index_alone():
    seeds = {sample_seed(run, group, i) for run in range(3) for group in range(20) for i in range(8)}
    assert len(seeds) == 3 * 20 * 8 and all(0 <= s < 2**31 for s in seeds)
    assert sample_seed(1, 23, 4) != sample_seed(12, 3, 4)


def test_a_buckets_digest_changes_with_any_of_its_facts_or_bytes():
    def bucket(name="w", shape=(4,), dtype="uint8", data=(1, 2, 3, 4), index=0):
        return WeightBucket(index, True, (name,), (shape,), (dtype,), np.array(data, np.uint8)).digest()

    digests = [bucket(), bucket("v"), bucket(shape=(2, 2)), bucket(dtype="int8"), bucket(data=(1, 2, 3, 5))]
    digests.append(bucket(index=1))
    assert len(set(digests)) == len(digests) and bucket() == digests[0]
    assert digest_buckets(digests) != digest_buckets(digests[::-1])


def test_a_column_is_whole_only_if_every_token_came_exactly_once():
    half, rest = TokenColumn(np.array([2, 0]), np.array([0.2, 0.0])), TokenColumn(np.array([1]), np.array([0.1]))
    assert assemble([half, rest], 3).tolist() == pytest.approx([0.0, 0.1, 0.2])
    with pytest.raises(ValueError, match="1 of 3 tokens"):
        assemble([half], 3)
    with pytest.raises(ValueError, match="1 of 3 tokens"):
        assemble([half, rest, TokenColumn(np.array([1]), np.array([0.1]))], 3)


def test_a_sample_is_a_view_and_not_a_copy_of_its_batch():
    batch = batch_of(ONE)
    row: Sample = batch.sample(0)
    assert np.shares_memory(row.token_ids, batch.token_ids)
