"""A worker's lease: what it sees of its keeper's count, and when that ends it."""

import tempfile

import pytest

from cluster.workers.lease import LOOK_EVERY_S, LOOKS, Lease, _remove_scratch, numbers


def test_a_count_that_stands_still_for_five_looks_ends_the_lease_and_not_for_four():
    lease = Lease()
    assert [lease.over(b"1") for _ in range(5)] == [False] * 5, "the first look sees it new"
    assert lease.over(b"1")
    assert LOOKS * LOOK_EVERY_S == 20


def test_a_count_that_moves_begins_anew_whichever_way():
    lease = Lease(looks=2)
    assert not any(lease.over(seen) for seen in (b"5", b"5", b"6", b"6", b"2", b"2"))
    assert lease.over(b"2")


def test_a_lease_that_was_taken_away_is_over_at_once():
    lease = Lease()
    assert not lease.over(b"1") and lease.over(None)


def test_the_numbers_of_a_name():
    assert numbers("rollout-12") == [12] and numbers("learner-1.3") == [1, 3]


@pytest.mark.parametrize(("folder", "stays"), [("raylign-1-xyz", False), ("raylign-2-xyz", True), ("tmp", True)])
def test_a_worker_that_ends_with_its_lease_takes_its_runs_scratch_with_it_and_nothing_else(
    tmp_path, monkeypatch, folder, stays
):
    scratch = tmp_path / folder
    scratch.mkdir()
    (scratch / "socket").touch()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    _remove_scratch("raylign-1")
    assert scratch.exists() == stays
