"""Bad rows, collected: one DataError names every one of them (20 listed, all counted).

In: problems as they are met, each with its place (file:line). Out: one DataError, or, within `skip_invalid`, a count
of skipped rows. Left out: what makes a row bad (the readers decide).
"""

from __future__ import annotations

from dataclasses import dataclass, field

LISTED = 20


class DataError(ValueError):
    """The data cannot be used as asked. `problems` are all of them, as (place, reason)."""

    def __init__(self, source: str, problems: list[tuple[str, str]], note: str = "") -> None:
        self.problems = tuple(problems)
        count = len(problems)
        lines = [f"{source}: {count} {'problem' if count == 1 else 'problems'}{note}"]
        lines += [f"  {where}: {reason}" for where, reason in problems[:LISTED]]
        if count > LISTED:
            lines.append(f"  ... and {count - LISTED} more")
        super().__init__("\n".join(lines))


class RowError(ValueError):
    """One row is bad; the reader that catches it knows the row's place."""


@dataclass(slots=True)
class Problems:
    """Collects bad rows of one source. `skip_invalid` bounds how many may be skipped: an int counts rows, a float in
    [0, 1) is a share of the rows read. `refuse` problems are never skipped."""

    source: str
    skip_invalid: int | float = 0
    skippable: list[tuple[str, str]] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)

    def skip(self, where: str, reason: str) -> None:
        self.skippable.append((where, reason))

    def refuse(self, where: str, reason: str) -> None:
        self.refused.append((where, reason))

    def settle(self, rows_read: int) -> int:
        """The number of rows skipped; DataError with all problems if that is more than allowed, or any is refused."""
        is_share = isinstance(self.skip_invalid, float)
        allowed = int(self.skip_invalid * rows_read) if is_share else self.skip_invalid
        if self.refused or len(self.skippable) > allowed:
            note = ""
            if self.skip_invalid and len(self.skippable) > allowed:
                note = f", more than skip_invalid={self.skip_invalid} allows ({allowed} of {rows_read} rows)"
            raise DataError(self.source, self.skippable + self.refused, note)
        return len(self.skippable)


def check_skip_invalid(value: int | float) -> None:
    """ValueError unless `value` is a count of rows or a share of them."""
    if isinstance(value, bool) or value < 0 or (isinstance(value, float) and value >= 1):
        raise ValueError(f"skip_invalid must be a count (an integer >= 0) or a share in [0, 1), got {value!r}")
