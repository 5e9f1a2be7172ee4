"""Rows to start from, of each kind that a method learns from: sums, whose answers anybody can check.

In: what a row is. Out: a file's name and its JSON lines. Arithmetic is what the recipes for two cores tune on, so that
a first run has something to learn; a person replaces the file. Left out: reading rows (actors/data).
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from cluster.config.schema import Config

COUNT, HELDOUT = 240, 40
"""Rows in a file, and how many of them the recipe keeps for evaluation."""


@dataclass(frozen=True, slots=True)
class Kind:
    """file: its name. row: a line that tells its columns. data: keys of the recipe's `data` section besides its path.
    columns: those of a sum (as text, what it makes, its place in the file)."""

    file: str
    row: str
    data: tuple[str, ...]
    columns: Callable[[str, int, int], dict[str, Any]]


def _prompt(expression: str) -> dict[str, Any]:
    return {"prompt": f"State the final answer to the following arithmetic problem: {expression} ="}


def _said(expression: str, answer: int, written_out: bool) -> str:
    return f"{expression} = {answer}" if written_out else f"The answer is {answer}."


KINDS = {
    "prompts": Kind(
        "prompts.jsonl",
        '{"prompt": ..., "answer": ...}; rewards see every column',
        (),
        lambda expression, answer, number: {**_prompt(expression), "answer": str(answer)},
    ),
    "pairs": Kind(
        "pairs.jsonl",
        '{"prompt": ..., "chosen": ..., "rejected": ...}',
        (),
        lambda expression, answer, number: {
            **_prompt(expression),
            "chosen": _said(expression, answer, True),
            "rejected": _said(expression, answer, False),
        },
    ),
    "responses": Kind(
        "judged.jsonl",
        '{"prompt": ..., "completion": ..., "label": true or false}',
        ("labels: {column: label}",),
        lambda expression, answer, number: {
            **_prompt(expression),
            "completion": _said(expression, answer, number % 2 == 0),
            "label": number % 2 == 0,
        },
    ),
    "conversations": Kind(
        "demonstrations.jsonl",
        '{"prompt": ..., "completion": ...}, or messages (messages_column)',
        (),
        lambda expression, answer, number: {
            **_prompt(expression),
            "completion": _said(expression, answer, number % 2 == 0),
        },
    ),
}
"""By what a row is. Written out is better, in pairs and in judgements; demonstrations say an answer both ways."""


def kind_of_rows(config: Config) -> Kind:
    """What the method learns from. KTO takes pairs too, but single judgements are what it is chosen for."""
    return KINDS["responses" if config.algorithm.name == "kto" else config.row_kind]


def rows_of(kind: Kind) -> str:
    """The file's text."""
    lines = (kind.columns(*each) for each in _sums())
    return "".join(f"{json.dumps(columns)}\n" for columns in lines)


def _sums() -> Iterator[tuple[str, int, int]]:
    """(expression, answer, number) of COUNT different sums and differences of one and two digits, always the same."""
    draw, seen = random.Random(0), set[str]()
    while len(seen) < COUNT:
        left, right, plus = draw.randint(0, 99), draw.randint(0, 99), draw.random() < 0.5
        expression = f"{left} {'+' if plus else '-'} {right}"
        if expression not in seen:
            yield expression, left + right if plus else left - right, len(seen)
            seen.add(expression)
