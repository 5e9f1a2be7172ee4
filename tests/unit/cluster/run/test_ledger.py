"""The ledger: every prompt has one fate, nothing counts twice, and a restore goes back without forgetting versions."""

import sqlite3

import pytest

from cluster.run.ledger import Ledger, LedgerCounts


@pytest.fixture
def ledger(tmp_path):
    opened = Ledger(tmp_path / "ledger.sqlite")
    yield opened
    opened.close()


def rows(*positions, epoch=0):
    """Prompt ids are the positions plus 100."""
    return [(epoch, 100 + position, position) for position in positions]


def test_every_admitted_prompt_is_in_flight_trained_or_dropped(ledger):
    ledger.admit(1, rows(0, 1, 2, 3, 4))
    assert ledger.counts() == LedgerCounts(admitted=5, trained=0, dropped=0, in_flight=5)
    ledger.scored([0, 1, 2])
    assert ledger.counts().in_flight == 5
    ledger.trained([0, 1], 1)
    ledger.dropped([2], "no score")
    ledger.dropped([3], "too long")
    counts = ledger.counts()
    assert counts == LedgerCounts(admitted=5, trained=2, dropped=2, in_flight=1) and counts.balanced()
    assert ledger.reasons() == {"no score": 1, "too long": 1}
    assert not LedgerCounts(admitted=5, trained=2, dropped=2, in_flight=0).balanced()


@pytest.mark.parametrize("again", [[(0, 100, 7)], [(1, 100, 0)]], ids=["same prompt", "same position"])
def test_a_prompt_or_a_position_is_admitted_once_and_a_refused_wave_leaves_nothing(ledger, again):
    ledger.admit(1, rows(0, 1))
    with pytest.raises(sqlite3.IntegrityError):
        ledger.admit(2, [(5, 5, 5), *again])
    assert ledger.counts().admitted == 2


def test_what_is_neither_trained_nor_dropped_is_found_again_in_the_order_of_admission(ledger):
    ledger.admit(0, [(0, 7, 0), (0, 3, 1), (0, 5, 2), (0, 1, 3)])
    ledger.scored([1])
    ledger.trained([0], 1)
    ledger.dropped([2], "no score")
    assert ledger.in_flight() == [(3, 1), (1, 3)]


def test_a_trained_prompt_is_of_the_step_that_trained_it(ledger):
    ledger.admit(1, rows(0, 1))
    assert ledger.last_trained() is None
    ledger.trained([1], 4)
    assert ledger.last_trained() == 4


def test_the_same_prompt_comes_again_in_the_next_epoch(ledger):
    ledger.admit(1, rows(0))
    ledger.admit(2, [(1, 100, 1)])
    ledger.trained([0], 1)
    assert ledger.counts() == LedgerCounts(admitted=2, trained=1, dropped=0, in_flight=1)


@pytest.mark.parametrize("mark", ["trained", "scored", "dropped"])
@pytest.mark.parametrize("positions", [[0, 2], [1, 1], [0, 9]], ids=["trained before", "twice at once", "unknown"])
def test_marking_what_is_not_in_flight_is_refused_and_the_whole_wave_is_taken_back(ledger, mark, positions):
    ledger.admit(1, rows(0, 1, 2))
    ledger.trained([2], 1)
    # scoring a scored prompt again is harmless; everything else would count it twice
    if mark == "scored" and positions == [1, 1]:
        positions = [1, 2]
    arguments = {"dropped": ("no score",), "trained": (1,)}.get(mark, ())
    with pytest.raises(ValueError, match="1 of 2 prompts"):
        getattr(ledger, mark)(positions, *arguments)
    assert ledger.counts() == LedgerCounts(admitted=3, trained=1, dropped=0, in_flight=2)
    assert ledger.reasons() == {}


def test_a_wave_of_nobody_is_no_error(ledger):
    ledger.dropped([], "no score")
    ledger.trained([], 1)
    assert ledger.counts() == LedgerCounts(0, 0, 0, 0) and ledger.last_version() == 0


def test_a_restore_goes_back_to_the_backup_but_keeps_every_version(ledger, tmp_path):
    ledger.admit(1, rows(0, 1))
    ledger.record_version(1, "a", 0)
    ledger.trained([0], 1)
    saved = tmp_path / "checkpoint" / "ledger.sqlite"
    saved.parent.mkdir()
    ledger.backup(saved)
    content = saved.read_bytes()
    ledger.trained([1], 1)
    ledger.admit(2, rows(2, 3))
    ledger.record_version(2, "b", 1)
    ledger.record_version(3, "c", 2)
    ledger.restore(saved)
    assert ledger.counts() == LedgerCounts(admitted=2, trained=1, dropped=0, in_flight=1)
    assert ledger.last_version() == 3
    ledger.admit(2, rows(2, 3))
    ledger.trained([1], 1)
    # the checkpoint is as it was: no byte of it changed, nothing was written beside it
    assert saved.read_bytes() == content and [p.name for p in saved.parent.iterdir()] == ["ledger.sqlite"]


def test_a_restore_that_fails_halfway_changes_nothing(ledger, tmp_path):
    ledger.admit(1, rows(0))
    ledger.record_version(4, "d", 0)
    torn = tmp_path / "torn.sqlite"
    with sqlite3.connect(torn) as other:  # prompts restore, versions are not there
        other.execute("CREATE TABLE prompts (a, b, c, d, e, f, g)")
    other.close()
    with pytest.raises(sqlite3.OperationalError):
        ledger.restore(torn)
    assert ledger.counts().admitted == 1 and ledger.last_version() == 4
    ledger.trained([0], 1)


def test_a_new_ledger_takes_versions_and_prompts_from_a_backup(ledger, tmp_path):
    ledger.admit(1, rows(0))
    ledger.record_version(7, "g", 0)
    ledger.backup(tmp_path / "backup.sqlite")
    other = Ledger(tmp_path / "other.sqlite")
    other.restore(tmp_path / "backup.sqlite")
    assert other.last_version() == 7 and other.counts().admitted == 1
    other.close()


def test_starting_over_forgets_prompts_and_keeps_versions(ledger):
    ledger.admit(1, rows(0))
    ledger.record_version(5, "e", 0)
    ledger.clear()
    assert ledger.counts().admitted == 0 and ledger.last_version() == 5
    ledger.admit(1, rows(0))


def test_a_version_number_is_published_once(ledger):
    ledger.record_version(1, "a", 0)
    with pytest.raises(sqlite3.IntegrityError):
        ledger.record_version(1, "b", 0)


def test_the_file_can_be_read_while_the_driver_writes_and_holds_after_closing(ledger, tmp_path):
    ledger.admit(1, rows(0, 1))
    reader = Ledger(tmp_path / "ledger.sqlite")
    ledger.trained([0], 1)
    assert reader.counts() == LedgerCounts(admitted=2, trained=1, dropped=0, in_flight=1)
    reader.close()
