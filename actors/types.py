"""The frozen types that cross a process, and nothing else.

In: whatever a worker made. Out: columns that ship in milliseconds: a batch is a handful of flat numpy arrays plus
offsets, never a list of small objects. Left out on purpose: tensors (learners make them), Ray references (cluster
holds them), text (ids are what engines and learners consume; text exists for reward functions and people).

Axes: B samples, G groups (one admitted prompt each), T response tokens of the whole batch laid end to end.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xxhash


class FinishReason(enum.IntEnum):
    """Why a sequence ended. STOP: the end-of-sequence token or a stop string; LENGTH: the token limit cut it."""

    STOP = 0
    LENGTH = 1
    ABORT = 2


ENVIRONMENT_TURN = -1
"""Marks a response token that a tool or environment wrote: it is context, never trained on."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One admitted prompt.

    id: row in the prompt source, stable across runs and resumes.
    token_ids: the templated prompt, tokenised once.
    group: position in the run's prompt order; unique per admission, so it names the group of samples.
    data: the row's other columns, handed to the reward functions (with `question` text where the source has one).
    """

    id: int
    token_ids: tuple[int, ...]
    group: int
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PolicyVersion:
    """A published policy. `digest` is `digest_buckets` of the bytes that every engine must have received."""

    number: int
    digest: str


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """How to sample. temperature 0 is greedy. `max_tokens` bounds the response; `stop` strings end it early."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 128
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    samples_per_prompt: int = 1
    seed: int = 0
    """Run seed; each sample's own seed is `sample_seed(seed, group, sample_index)`."""


def sample_seed(run_seed: int, group: int, sample_index: int) -> int:
    """A sample's seed in [0, 2**31): depends on what is sampled, never on the worker or the policy version."""
    digest = hashlib.blake2b(f"{run_seed}/{group}/{sample_index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") & 0x7FFFFFFF


@dataclass(frozen=True, slots=True)
class Sample:
    """A view of one row of a SampleBatch."""

    group: int
    prompt_id: int
    sample_index: int
    prompt_tokens: np.ndarray
    token_ids: np.ndarray
    logprobs: np.ndarray
    turns: np.ndarray
    spans: tuple[tuple[int, int], ...]
    """(first token, policy version) of each run of tokens, in order."""
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True)
class SampleBatch:
    """Samples as columns. Rows of one group need not be adjacent; prompts stand once per group.

    groups, prompt_ids: int64 [G]; prompt_tokens: int32, end to end; prompt_offsets: int64 [G+1].
    group_rows: int32 [B], the index into `groups` of each sample; sample_indices: int32 [B].
    token_ids: int32 [T]; offsets: int64 [B+1]; logprobs: float32 [T], of the sampling distribution (temperature
    applied); turns: int16 [T], ENVIRONMENT_TURN where the environment wrote.
    spans: int64 [S, 3] rows (sample row, first token within the sample, policy version), ordered.
    finish_reasons: uint8 [B].
    """

    groups: np.ndarray
    prompt_ids: np.ndarray
    prompt_tokens: np.ndarray
    prompt_offsets: np.ndarray
    group_rows: np.ndarray
    sample_indices: np.ndarray
    token_ids: np.ndarray
    offsets: np.ndarray
    logprobs: np.ndarray
    turns: np.ndarray
    spans: np.ndarray
    finish_reasons: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Response tokens per sample, int64 [B]."""
        return np.diff(self.offsets)

    def prompt_of(self, row: int) -> np.ndarray:
        g = int(self.group_rows[row])
        return self.prompt_tokens[self.prompt_offsets[g] : self.prompt_offsets[g + 1]]

    def response_of(self, row: int) -> np.ndarray:
        return self.token_ids[self.offsets[row] : self.offsets[row + 1]]

    def sample(self, row: int) -> Sample:
        span = slice(int(self.offsets[row]), int(self.offsets[row + 1]))
        mine = self.spans[self.spans[:, 0] == row]
        g = int(self.group_rows[row])
        return Sample(
            group=int(self.groups[g]),
            prompt_id=int(self.prompt_ids[g]),
            sample_index=int(self.sample_indices[row]),
            prompt_tokens=self.prompt_of(row),
            token_ids=self.token_ids[span],
            logprobs=self.logprobs[span],
            turns=self.turns[span],
            spans=tuple((int(begin), int(version)) for _, begin, version in mine),
            finish_reason=FinishReason(int(self.finish_reasons[row])),
        )

    def __iter__(self) -> Iterator[Sample]:
        return (self.sample(row) for row in range(len(self)))

    def take(self, rows: Sequence[int]) -> SampleBatch:
        """A batch of only these rows."""
        return SampleBatch.from_samples([self.sample(row) for row in rows])

    @staticmethod
    def from_samples(samples: Sequence[Sample]) -> SampleBatch:
        """Columns from rows; groups in order of first appearance."""
        index: dict[int, int] = {}
        firsts: list[Sample] = []
        for s in samples:
            if s.group not in index:
                index[s.group] = len(firsts)
                firsts.append(s)
        spans = [(row, begin, version) for row, s in enumerate(samples) for begin, version in s.spans]
        return SampleBatch(
            groups=np.array([s.group for s in firsts], np.int64),
            prompt_ids=np.array([s.prompt_id for s in firsts], np.int64),
            prompt_tokens=_flat([s.prompt_tokens for s in firsts], np.int32),
            prompt_offsets=_offsets([len(s.prompt_tokens) for s in firsts]),
            group_rows=np.array([index[s.group] for s in samples], np.int32),
            sample_indices=np.array([s.sample_index for s in samples], np.int32),
            token_ids=_flat([s.token_ids for s in samples], np.int32),
            offsets=_offsets([len(s.token_ids) for s in samples]),
            logprobs=_flat([s.logprobs for s in samples], np.float32),
            turns=_flat([s.turns for s in samples], np.int16),
            spans=np.array(spans, np.int64).reshape(-1, 3),
            finish_reasons=np.array([int(s.finish_reason) for s in samples], np.uint8),
        )

    @staticmethod
    def concat(batches: Sequence[SampleBatch]) -> SampleBatch:
        """One batch with the rows of all, in order. A group split over batches becomes one group again."""
        if len(batches) == 1:
            return batches[0]
        groups = np.concatenate([b.groups for b in batches])
        if len(np.unique(groups)) < len(groups):
            return SampleBatch.from_samples([s for b in batches for s in b])
        rows = np.cumsum([0, *(len(b) for b in batches)])
        firsts = np.cumsum([0, *(len(b.groups) for b in batches)])
        spans = [b.spans + np.array([rows[i], 0, 0]) for i, b in enumerate(batches)]

        def joined(name: str) -> np.ndarray:
            return np.concatenate([getattr(b, name) for b in batches])

        return SampleBatch(
            groups=groups,
            prompt_ids=joined("prompt_ids"),
            prompt_tokens=joined("prompt_tokens"),
            prompt_offsets=_offsets(np.concatenate([np.diff(b.prompt_offsets) for b in batches])),
            group_rows=np.concatenate([b.group_rows + firsts[i] for i, b in enumerate(batches)]).astype(np.int32),
            sample_indices=joined("sample_indices"),
            token_ids=joined("token_ids"),
            offsets=_offsets(np.concatenate([b.lengths for b in batches])),
            logprobs=joined("logprobs"),
            turns=joined("turns"),
            spans=np.concatenate(spans),
            finish_reasons=joined("finish_reasons"),
        )


@dataclass(frozen=True, slots=True)
class Score:
    """One sample's score. value None means no score (the reward failed): it is never 0; `error` says why."""

    value: float | None
    parts: Mapping[str, float]
    error: str | None = None


@dataclass(frozen=True, slots=True)
class ScoreBatch:
    """Scores as columns, aligned with a SampleBatch's rows. values: float64 [B], NaN where there is no score.

    parts: each reward function's own score, float64 [B], NaN where that function failed; errors: row -> reason.
    """

    values: np.ndarray
    parts: Mapping[str, np.ndarray]
    errors: Mapping[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.values)

    @staticmethod
    def concat(batches: Sequence[ScoreBatch]) -> ScoreBatch:
        """The scores of all rows, in order. ValueError if the batches have other parts."""
        names = list(batches[0].parts)
        if any(list(b.parts) != names for b in batches):
            raise ValueError(f"score batches with different parts: {[list(b.parts) for b in batches]}")
        errors: dict[int, str] = {}
        begin = 0
        for b in batches:
            errors.update({begin + row: why for row, why in b.errors.items()})
            begin += len(b)
        return ScoreBatch(
            values=np.concatenate([b.values for b in batches]),
            parts={name: np.concatenate([b.parts[name] for b in batches]) for name in names},
            errors=errors,
        )

    def score(self, row: int) -> Score:
        value = float(self.values[row])
        parts = {name: float(column[row]) for name, column in self.parts.items()}
        return Score(None if np.isnan(value) else value, parts, self.errors.get(row))


@dataclass(frozen=True, slots=True)
class WeightBucket:
    """A run of parameters as one flat buffer, at most a bucket long unless one tensor alone is longer.

    names, shapes, dtypes (torch names, e.g. "bfloat16") describe the tensors laid end to end in `data` (uint8 [n]).
    """

    index: int
    last: bool
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    data: np.ndarray

    def digest(self) -> str:
        """Content hash: names, shapes, dtypes and bytes. XXH3, as fast as memory (9 GB/s a core, SHA-256 makes 1): the
        proof is against accidents, and every engine makes it for every version."""
        h = xxhash.xxh3_128(repr((self.index, self.last, self.names, self.shapes, self.dtypes)).encode())
        h.update(self.data.data)
        return h.hexdigest()


@dataclass(frozen=True, slots=True)
class WeightSummary:
    """What a whole version is: the digest of its buckets and their bytes in all. Follows the last bucket."""

    digest: str
    nbytes: int


def digest_buckets(bucket_digests: Sequence[str]) -> str:
    """The digest of a whole version: the hash of its buckets' digests in index order."""
    return hashlib.sha256("/".join(bucket_digests).encode()).hexdigest()


def _flat(parts: Sequence[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate([np.asarray(p, dtype) for p in parts]) if parts else np.zeros(0, dtype)


def _offsets(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
