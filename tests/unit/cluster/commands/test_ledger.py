"""`raylign ledger`: the balance of a run, also while its driver writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.commands.ledger import ledger_lines
from cluster.errors import UserError
from cluster.run.ledger import Ledger


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "config.yaml").write_text("steps: 3\n")
    return tmp_path


def test_it_balances_and_says_why_prompts_were_dropped(run: Path) -> None:
    book = Ledger(run / "ledger.sqlite")
    book.admit(1, [(0, n, n) for n in range(10)])
    book.dropped([0, 1], "no score")
    book.dropped([2], "stale")
    book.trained([3, 4, 5], 2)
    book.record_version(7, "d" * 64, 1)
    assert ledger_lines(str(run)) == [
        str(run),
        "  10 admitted = 3 trained + 3 dropped + 4 in flight",
        "  2 dropped: no score",
        "  1 dropped: stale",
        "  last trained in step 2",
        "  policy version 7",
    ]
    book.admit(2, [(0, 10, 10)])
    assert ledger_lines(str(run))[1] == "  11 admitted = 3 trained + 3 dropped + 5 in flight", "as its driver writes"
    book.close()


def test_a_run_that_has_not_begun_has_none(run: Path) -> None:
    with pytest.raises(UserError, match="has no ledger yet; its driver has not begun"):
        ledger_lines(str(run))
    assert not (run / "ledger.sqlite").exists(), "asking makes none"
