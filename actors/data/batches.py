"""Stored rows as a SampleBatch: what learners take. A row's position in the run's order is its group.

In: (row, position) pairs. Out: columns; pairs stand as chosen (sample index 0) and rejected (1), side by side. Left
out: which rows a step takes (order.py), labels and margins (they travel as scores).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from actors.data.demonstrations import Demonstration
from actors.data.judged import JudgedResponse
from actors.data.preferences import PreferencePair
from actors.data.stored import StoredRow
from actors.types import ENVIRONMENT_TURN, FinishReason, Sample, SampleBatch

Row = TypeVar("Row", PreferencePair, JudgedResponse)


def pair_batch(rows: Sequence[tuple[PreferencePair, int]]) -> SampleBatch:
    """Rows 2i and 2i + 1 are pair i's chosen and rejected responses."""
    return SampleBatch.from_samples(
        [_sample(pair, at, side, tokens) for pair, at in rows for side, tokens in enumerate(pair.responses)]
    )


def judged_batch(rows: Sequence[tuple[JudgedResponse, int]]) -> SampleBatch:
    return SampleBatch.from_samples([_sample(row, at, 0, row.response_tokens) for row, at in rows])


def demonstration_batch(rows: Sequence[tuple[Demonstration, int]]) -> SampleBatch:
    """turns: ENVIRONMENT_TURN where a token is not the assistant's."""
    return SampleBatch.from_samples([_sample(row, at, 0, row.token_ids, row.trained) for row, at in rows])


def mismatched_batch(
    rows: Sequence[tuple[PreferencePair | JudgedResponse, int]],
    partners: Sequence[PreferencePair | JudgedResponse],
) -> SampleBatch:
    """Each row's prompt with its partner's first response: what KTO's reference point is measured on."""
    return SampleBatch.from_samples(
        [_sample(row, at, 0, other.responses[0]) for (row, at), other in zip(rows, partners, strict=True)]
    )


def pairs_of(rows: Sequence[tuple[StoredRow, int]]) -> list[tuple[PreferencePair, int]]:
    """The rows, which are all pairs. TypeError if one is not."""
    return [(_as(PreferencePair, row), at) for row, at in rows]


def judged_of(rows: Sequence[tuple[StoredRow, int]]) -> list[tuple[JudgedResponse, int]]:
    """The rows, which are all judged responses. TypeError if one is not."""
    return [(_as(JudgedResponse, row), at) for row, at in rows]


def _as(kind: type[Row], row: object) -> Row:
    if not isinstance(row, kind):
        raise TypeError(f"a row is a {type(row).__name__}, and the run learns from {kind.__name__}s")
    return row


def partners(prompts: Sequence[tuple[int, ...]]) -> list[int]:
    """For each row the next one, around the end, that has another prompt. ValueError where all prompts are the same."""
    last = next((row for row, prompt in enumerate(prompts) if prompt != prompts[-1]), None)
    if last is None:
        raise ValueError("KTO compares with other prompts' responses and all prompts are the same; add another")
    found = [last] * len(prompts)
    for row in reversed(range(len(prompts) - 1)):
        found[row] = row + 1 if prompts[row + 1] != prompts[row] else found[row + 1]
    return found


def _sample(
    row: PreferencePair | JudgedResponse | Demonstration,
    position: int,
    side: int,
    tokens: Sequence[int],
    trained: Sequence[bool] | None = None,
) -> Sample:
    n = len(tokens)
    mine = np.ones(n, bool) if trained is None else np.array(trained, bool)
    return Sample(
        group=position,
        prompt_id=row.id,
        sample_index=side,
        prompt_tokens=np.array(row.prompt_tokens, np.int32),
        token_ids=np.array(tokens, np.int32),
        logprobs=np.zeros(n, np.float32),
        turns=np.where(mine, 0, ENVIRONMENT_TURN).astype(np.int16),
        spans=((0, 0),),
        finish_reason=FinishReason.STOP,
    )
