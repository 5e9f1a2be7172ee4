"""The rank launcher itself: results in rank order, a failing rank's words, no hang and nobody left behind."""

from __future__ import annotations

import os
import time

import pytest

from tests.fixtures.ranks import RankFailed, run_ranks


def describe(rank, world_size, payload):
    return {"rank": rank, "ranks": world_size, "payload": payload}


def fail_on_rank_1(rank, world_size, payload):
    if rank == 1:
        raise ValueError("rank 1 had a bad day")
    hang(rank, world_size, payload)


def hang(rank, world_size, payload):
    with open(f"{payload}/pid-{rank}", "w") as f:
        f.write(str(os.getpid()))
    time.sleep(600)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_results_come_back_in_rank_order(tmp_path):
    results = run_ranks("tests.contracts.learners.test_ranks:describe", 2, "x", folder=tmp_path, timeout_s=60)
    assert results == [{"rank": 0, "ranks": 2, "payload": "x"}, {"rank": 1, "ranks": 2, "payload": "x"}]


def test_a_failing_rank_is_quoted_and_its_waiting_peer_ended(tmp_path):
    with pytest.raises(RankFailed, match="rank 1 had a bad day"):
        run_ranks("tests.contracts.learners.test_ranks:fail_on_rank_1", 2, str(tmp_path), folder=tmp_path, timeout_s=60)
    written = tmp_path / "pid-0"
    assert not written.exists() or not alive(int(written.read_text()))


def test_a_hanging_rank_is_ended_at_the_deadline(tmp_path):
    begin = time.monotonic()
    with pytest.raises(RankFailed, match="did not end well within 8 s"):
        run_ranks("tests.contracts.learners.test_ranks:hang", 1, str(tmp_path), folder=tmp_path, timeout_s=8)
    assert time.monotonic() - begin < 30
    assert not alive(int((tmp_path / "pid-0").read_text()))
