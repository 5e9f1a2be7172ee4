"""One thing wrong with the input."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """Where, and a sentence that says the rule, the value and the fix."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


def got(value: float | None) -> str:
    """A number that was given, in a sentence."""
    return "none" if value is None else f"{value:g}"
