"""Every prompt's fate, in the run's SQLite file: written by the driver alone, readable while it runs.

In: admissions and outcomes, one transaction a wave. Out: counts, and the rows themselves. At any moment admitted =
trained + dropped + in flight. `trained` is provisional until a checkpoint's manifest covers its step: a checkpoint
holds a backup of this file, and a resume restores it. Left out: recovery policy.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SCHEMA = """
CREATE TABLE IF NOT EXISTS prompts (
    epoch INTEGER NOT NULL,
    prompt_id INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    position INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('in_flight', 'scored', 'trained', 'dropped')),
    step INTEGER NOT NULL,
    reason TEXT,
    PRIMARY KEY (epoch, prompt_id, generation)
);
CREATE UNIQUE INDEX IF NOT EXISTS prompts_position ON prompts (position);
CREATE TABLE IF NOT EXISTS lengths (position INTEGER PRIMARY KEY, tokens REAL NOT NULL);
CREATE TABLE IF NOT EXISTS versions (number INTEGER PRIMARY KEY, digest TEXT NOT NULL, step INTEGER NOT NULL);
"""


@dataclass(frozen=True, slots=True)
class LedgerCounts:
    admitted: int
    trained: int
    dropped: int
    in_flight: int

    def balanced(self) -> bool:
        return self.admitted == self.trained + self.dropped + self.in_flight


class Ledger:
    """Positions name admissions: `epoch`, `prompt_id` and generation are the key, position the run's order."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._db = sqlite3.connect(path, isolation_level=None, uri=True)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.executescript(SCHEMA)

    @classmethod
    @contextmanager
    def reading(cls, path: Path) -> Iterator[Ledger]:
        """A ledger that another process may be writing: nothing is changed or made."""
        book = cls.__new__(cls)
        book._path = path
        book._db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", isolation_level=None, uri=True)
        try:
            yield book
        finally:
            book.close()

    def admit(self, step: int, rows: Sequence[tuple[int, int, int]]) -> None:
        """rows: (epoch, prompt id, position). Admitting a row twice is an error: nothing may be trained twice."""
        with self._transaction():
            self._db.executemany(
                "INSERT INTO prompts VALUES (?, ?, 0, ?, 'in_flight', ?, NULL)",
                [(epoch, prompt_id, position, step) for epoch, prompt_id, position in rows],
            )

    def scored(self, positions: Sequence[int]) -> None:
        self._move(positions, "scored", None)

    def trained(self, positions: Sequence[int], step: int) -> None:
        """step: in which; until now it was that of the admission."""
        self._move(positions, "trained", None, step)

    def dropped(self, positions: Sequence[int], reason: str) -> None:
        self._move(positions, "dropped", reason)

    def record_version(self, number: int, digest: str, step: int) -> None:
        with self._transaction():
            self._db.execute("INSERT INTO versions VALUES (?, ?, ?)", (number, digest, step))

    def last_version(self) -> int:
        """The highest version ever published, 0 before the first."""
        return int(self._db.execute("SELECT coalesce(max(number), 0) FROM versions").fetchone()[0])

    def measured(self, lengths: Mapping[int, float]) -> None:
        """Mean response tokens of prompts that have ended, by position; who is generated again is measured again."""
        with self._transaction():
            self._db.executemany("INSERT OR REPLACE INTO lengths VALUES (?, ?)", list(lengths.items()))

    def recent_lengths(self, window: int) -> tuple[list[float], list[float]]:
        """(of trained prompts, of those that came too late for any step) among the last `window` of both, by order of
        admission."""
        query = (
            "SELECT prompts.state, lengths.tokens FROM lengths JOIN prompts USING (position) "
            "WHERE prompts.state = 'trained' OR prompts.reason = 'stale' ORDER BY lengths.position DESC LIMIT ?"
        )
        found = self._db.execute(query, (window,)).fetchall()
        trained = [tokens for state, tokens in found if state == "trained"]
        return trained, [tokens for state, tokens in found if state != "trained"]

    def counts(self) -> LedgerCounts:
        by_state = dict(self._db.execute("SELECT state, count(*) FROM prompts GROUP BY state").fetchall())
        return LedgerCounts(
            admitted=sum(by_state.values()),
            trained=by_state.get("trained", 0),
            dropped=by_state.get("dropped", 0),
            in_flight=by_state.get("in_flight", 0) + by_state.get("scored", 0),
        )

    def in_flight(self) -> list[tuple[int, int]]:
        """(prompt id, position) of what was admitted and is neither trained nor dropped, in order of admission."""
        query = "SELECT prompt_id, position FROM prompts WHERE state IN ('in_flight', 'scored') ORDER BY position"
        return self._db.execute(query).fetchall()

    def reasons(self) -> dict[str, int]:
        """Dropped prompts by reason."""
        query = "SELECT reason, count(*) FROM prompts WHERE state = 'dropped' GROUP BY reason"
        return dict(self._db.execute(query).fetchall())

    def backup(self, path: Path) -> None:
        """A consistent copy, for a checkpoint."""
        copy = sqlite3.connect(path)
        try:
            self._db.backup(copy)
        finally:
            copy.close()

    def restore(self, path: Path) -> None:
        """Become the backup, but keep every published version: their numbers only grow. One transaction, so that a
        crash in the middle forgets neither."""
        # Immutable: reading a WAL file otherwise writes beside it, in a checkpoint that may be read-only.
        self._db.execute("ATTACH DATABASE ? AS saved", (f"{path.resolve().as_uri()}?immutable=1",))
        try:
            with self._transaction():
                self._db.execute("DELETE FROM main.prompts")
                self._db.execute("INSERT INTO main.prompts SELECT * FROM saved.prompts")
                settled = "SELECT position FROM main.prompts WHERE state IN ('trained', 'dropped')"
                self._db.execute(f"DELETE FROM main.lengths WHERE position NOT IN ({settled})")
                self._db.execute("INSERT OR IGNORE INTO main.versions SELECT * FROM saved.versions")
        finally:
            self._db.execute("DETACH DATABASE saved")

    def clear(self) -> None:
        """Forget the prompts (a resume without a checkpoint starts over), keep the versions."""
        with self._transaction():
            self._db.execute("DELETE FROM prompts")
            self._db.execute("DELETE FROM lengths")

    def close(self) -> None:
        self._db.close()

    def last_trained(self) -> int | None:
        """The last step that trained a prompt."""
        return self._db.execute("SELECT max(step) FROM prompts WHERE state = 'trained'").fetchone()[0]

    def _move(self, positions: Sequence[int], state: str, reason: str | None, step: int | None = None) -> None:
        with self._transaction():
            cursor = self._db.executemany(
                "UPDATE prompts SET state = ?, reason = ?, step = coalesce(?, step) "
                "WHERE position = ? AND state IN ('in_flight', 'scored')",
                [(state, reason, step, position) for position in positions],
            )
            if cursor.rowcount != len(positions):
                raise ValueError(
                    f"{len(positions) - cursor.rowcount} of {len(positions)} prompts to be marked {state} are not in "
                    "flight: a prompt would count twice"
                )

    def _transaction(self) -> _Transaction:
        return _Transaction(self._db)


class _Transaction:
    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: object, *_: object) -> None:
        self._db.execute("COMMIT" if kind is None else "ROLLBACK")
