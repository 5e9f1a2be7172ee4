"""The prompt order is a function of (seed, position) alone, and covers every row once an epoch."""

import pytest

from actors.data.order import PromptOrder


def test_each_epoch_admits_every_row_once_in_its_own_order():
    order = PromptOrder(n_rows=50, seed=7)
    first, second = ([row for row, _ in order.take(start, 50)] for start in (0, 50))
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second
    assert first != list(range(50))


def test_group_is_the_position_and_never_repeats_over_epochs():
    assert [group for _, group in PromptOrder(n_rows=3).take(5, 4)] == [5, 6, 7, 8]


def test_taking_in_portions_from_a_resumed_position_gives_the_same_rows():
    whole = PromptOrder(n_rows=7, seed=1).take(0, 30)
    parts = [
        pair for start, count in ((0, 5), (5, 1), (6, 13), (19, 11)) for pair in PromptOrder(7, 1).take(start, count)
    ]
    assert parts == whole


def test_another_seed_gives_another_order_and_no_shuffle_the_files_own():
    assert PromptOrder(40, seed=1).take(0, 40) != PromptOrder(40, seed=2).take(0, 40)
    assert PromptOrder(3, shuffle=False).take(2, 3) == [(2, 2), (0, 3), (1, 4)]


def test_epoch_is_the_position_divided_by_the_rows():
    assert [PromptOrder(3).epoch(p) for p in (0, 2, 3, 8)] == [0, 0, 1, 2]


def test_an_empty_source_is_refused():
    with pytest.raises(ValueError, match="no prompts"):
        PromptOrder(0)
