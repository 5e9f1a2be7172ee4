"""How often something may fail, when it is tried again, and what counts as stuck: on a clock that the test moves."""

from __future__ import annotations

import pytest

from cluster.pool.members.recovery import FailureBudget, Progress


def test_each_failure_waits_twice_as_long_as_the_one_before_until_it_was_calm_again():
    budget = FailureBudget(limit=10, backoff_s=1.0)
    assert [budget.failed(at) for at in (0.0, 5.0, 7.0)] == [1.0, 2.0, 4.0]
    assert budget.failed(900.0) == 1.0
    assert budget.spent == 4


def test_what_worked_until_it_failed_waits_no_longer_however_many_others_did():
    budget = FailureBudget(limit=10, backoff_s=1.0)
    assert [budget.failed(0.0, alone=True) for _ in range(5)] == [1.0] * 5
    assert budget.failed(1.0) == 1.0 and budget.failed(1.0) == 2.0
    assert budget.spent == 7


def test_a_success_begins_the_waits_anew_but_gives_nothing_back():
    budget = FailureBudget(limit=3, backoff_s=1.0)
    assert [budget.failed(0.0), budget.failed(0.0)] == [1.0, 2.0]
    budget.succeeded()
    assert [budget.failed(0.0), budget.failed(0.0)] == [1.0, None]


def test_no_wait_is_longer_than_a_minute():
    budget = FailureBudget(limit=100, backoff_s=1.0)
    assert [budget.failed(float(at)) for at in range(10)][-1] == 60.0


def test_one_failure_more_than_the_budget_is_the_end():
    budget = FailureBudget(limit=2, backoff_s=1.0)
    assert [budget.failed(1000.0 * n) for n in range(3)] == [1.0, 1.0, None]
    assert FailureBudget(limit=0, backoff_s=1.0).failed(0.0) is None


@pytest.mark.parametrize(
    ("looks", "expected"),
    [
        ([(1, False, 5.0), (2, False, 14.0), (3, False, 23.0)], [None, None, None]),
        ([(1, False, 5.0), (1, False, 14.0), (1, False, 15.5)], [None, None, 10.5]),
        ([(1, True, 5.0), (1, True, 50.0), (1, False, 55.0), (1, False, 61.0)], [None, None, None, 11.0]),
        ([(0, False, 1.0), (0, False, 11.5)], [None, 10.5]),
    ],
    ids=["makes tokens", "makes none", "had nothing to do", "never made one"],
)
def test_who_holds_work_and_makes_no_token_is_stuck_after_the_deadline(looks, expected):
    progress = Progress(10.0, now=0.0)
    found = [progress.stuck_for(*look) for look in looks]
    assert found == expected
