"""Packing: which token sees which, where a token is decided, and that no token is lost, doubled or over budget."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.models.packing import fill, lay_out, micro_batches, padding, plant, share_out
from tests.fixtures.columns import batch_of, random_batch, sample

GROUPS = st.lists(
    st.tuples(st.integers(1, 9), st.lists(st.integers(0, 12), min_size=1, max_size=5)), min_size=1, max_size=6
)


@st.composite
def batches(draw):
    groups = draw(GROUPS)
    return random_batch(draw(st.integers(0, 99)), [p for p, _ in groups], [r for _, r in groups], draw(st.booleans()))


def test_the_worked_example_two_samples_share_a_prompt():
    batch = batch_of(sample(0, 0, [50, 51], [60, 61]), sample(0, 1, [50, 51], [62]))
    micro = lay_out(batch, plant(batch, [0, 1], 100))
    assert micro.token_ids.tolist() == [50, 51, 60, 61, 62]
    assert micro.positions.tolist() == [0, 1, 2, 3, 2]
    assert micro.segments.tolist() == [0, 0, 1, 1, 2]
    assert micro.trees.tolist() == [0, 0, 0, 0, 0]
    assert micro.logit_positions.tolist() == [1, 2, 1]
    assert micro.targets.tolist() == [60, 61, 62]
    assert micro.slots.tolist() == [0, 1, 2]
    assert micro.rows.tolist() == [0, 1] and micro.row_lengths.tolist() == [2, 1]


def test_a_second_tree_starts_at_position_zero_and_points_past_the_first():
    batch = batch_of(sample(0, 0, [50], [60]), sample(1, 0, [51, 52], [61, 62]))
    micro = lay_out(batch, plant(batch, [1, 0], 100))
    assert micro.token_ids.tolist() == [51, 52, 61, 62, 50, 60]
    assert micro.positions.tolist() == [0, 1, 2, 3, 0, 1]
    assert micro.trees.tolist() == [0, 0, 0, 0, 1, 1]
    assert micro.logit_positions.tolist() == [1, 2, 4]
    assert micro.slots.tolist() == [1, 2, 0]


def test_an_empty_response_adds_its_row_and_no_token():
    batch = batch_of(sample(0, 0, [50, 51], []), sample(0, 1, [50, 51], [60]))
    micro = lay_out(batch, plant(batch, [0, 1], 100))
    assert micro.rows.tolist() == [0, 1] and micro.row_lengths.tolist() == [0, 1]
    assert micro.logit_positions.tolist() == [1] and micro.targets.tolist() == [60]


def test_a_prompt_without_a_token_is_refused_for_nothing_would_decide_the_first_response_token():
    batch = batch_of(sample(0, 0, [], [60]))
    with pytest.raises(ValueError, match="a prompt has no token"):
        lay_out(batch, plant(batch, [0], 100))


def test_a_group_is_cut_where_its_tree_would_pass_the_budget_and_a_long_sample_stands_alone():
    batch = batch_of(*(sample(0, i, [50, 51], [60] * n) for i, n in enumerate([3, 3, 9, 2])))
    trees = plant(batch, range(4), 8)
    assert [(t.rows, t.cost) for t in trees] == [((0, 1), 8), ((2,), 11), ((3,), 4)]
    assert [t.rows for t in plant(batch, range(4), 8, share_prompts=False)] == [(0,), (1,), (2,), (3,)]


def test_bins_are_as_few_as_first_fit_needs_and_evenly_loaded():
    batch = batch_of(*(sample(g, 0, [50], [60] * n) for g, n in enumerate([5, 4, 3, 2, 1, 1])))
    bins = fill(plant(batch, range(6), 12), 12)
    # costs 6 5 4 3 2 2 = 22 in bins of 12: two; first fit alone would load them 11 and 11 or 12 and 10
    assert sorted(sum(t.cost for t in b) for b in bins) == [11, 11]


def test_ranks_get_the_longest_first_each_to_the_least_loaded():
    batch = batch_of(*(sample(g, 0, [50], [60] * n) for g, n in enumerate([6, 4, 3, 2])))
    shares = share_out(plant(batch, range(4), 100), 2)
    assert [[t.cost for t in s] for s in shares] == [[7, 3], [5, 4]]


@given(batches(), st.integers(1, 40), st.integers(1, 4), st.booleans())
def test_every_response_token_is_scored_once_and_every_rank_forwards_equally_often(batch, budget, ranks, share):
    rows = list(range(len(batch)))
    all_ranks = [micro_batches(batch, rows, budget, rank=r, ranks=ranks, share_prompts=share) for r in range(ranks)]
    assert len({len(mine) for mine in all_ranks}) == 1
    real = [m for mine in all_ranks for m in mine if m is not None]
    slots = np.concatenate([m.slots for m in real])
    assert sorted(slots.tolist()) == list(range(len(batch.token_ids)))
    assert sorted(r for m in real for r in m.rows.tolist()) == rows
    for m in real:
        assert np.array_equal(m.targets, batch.token_ids[m.slots])
        decided_at = [p - 1 for row in m.rows for p in range(len(batch.prompt_of(row)), _end(batch, row))]
        assert m.positions[m.logit_positions].tolist() == decided_at
        assert np.array_equal(np.repeat(m.rows, m.row_lengths), _row_of(batch, m.slots))
        assert len(m.token_ids) <= budget or len(m.rows) == 1


@given(batches(), st.integers(1, 40))
def test_a_rank_that_pads_forwards_the_first_of_those_rows_micro_batches(batch, budget):
    rows = list(range(min(2, len(batch))))
    found, first = padding(batch, rows, budget), micro_batches(batch, rows, budget)[0]
    for name in ("token_ids", "segments", "slots", "rows"):
        assert getattr(found, name).tolist() == getattr(first, name).tolist()


@given(batches(), st.integers(1, 40))
def test_the_tokens_a_sample_sees_are_its_prompt_and_itself(batch, budget):
    for micro in micro_batches(batch, list(range(len(batch))), budget):
        cursor = 0
        for row, n in zip(micro.rows, micro.row_lengths, strict=True):
            if n:
                at = micro.logit_positions[cursor + n - 1]
                sees = (micro.trees == micro.trees[at]) & (np.arange(len(micro.trees)) <= at)
                own = micro.segments == _segment(micro, cursor, n)
                seen = micro.token_ids[sees & ((micro.segments == 0) | own)]
                assert seen.tolist() == [*batch.prompt_of(row).tolist(), *batch.response_of(row)[:-1].tolist()]
            cursor += n


def _segment(micro, cursor, n):
    """The segment of the row's own tokens: a row of one token is decided in the prompt and sees no segment yet."""
    return micro.segments[micro.logit_positions[cursor + n - 1]] if n > 1 else -1


def _end(batch, row):
    return len(batch.prompt_of(row)) + int(batch.lengths[row])


def _row_of(batch, slots):
    return np.searchsorted(batch.offsets, slots, side="right") - 1
