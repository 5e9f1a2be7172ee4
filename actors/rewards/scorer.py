"""From a rollout's samples to scores: decode, reward functions, reward models, the missing-EOS penalty, statistics.

In: a SampleBatch and its prompts by group. Out: a ScoreBatch aligned with the batch's rows, and `ScoreStats`. A sample
without a score stays without one, whatever its other parts say. Left out: KL and advantages (learners), loading reward
models (actors/models/reward_model.py), and how many failures a run may have (the driver).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from actors.rewards.judge import Judge, win_shares
from actors.rewards.runner import RewardRunner
from actors.types import FinishReason, Prompt, SampleBatch, ScoreBatch

MISSING_EOS = "missing_eos"
ERRORS_KEPT = 5


class Decoder(Protocol):
    """What is needed of a transformers tokenizer."""

    def batch_decode(self, sequences: list[list[int]], skip_special_tokens: bool = False) -> list[str]: ...


class ConversationModel(Protocol):
    """What is needed of a reward model: a score for each whole conversation."""

    def score_conversations(self, conversations: Sequence[list[dict[str, str]]]) -> np.ndarray: ...


@dataclass(frozen=True, slots=True)
class WeightedModel:
    """A reward model as one part of the sum."""

    name: str
    model: ConversationModel
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class ScoreStats:
    """mean, std (Bessel's correction) of the scores there are, NaN where there are too few; failed: samples without a
    score; parts: each part's mean over the samples it scored; errors: the first few reasons."""

    count: int
    failed: int
    mean: float
    std: float
    parts: Mapping[str, float]
    errors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WeightedJudge:
    """A judge as one part of the sum: a sample's part is its share of wins within its group."""

    name: str
    judge: Judge
    weight: float = 1.0


class Scorer:
    """One per scorer worker. Owns the runner: `close` ends its process."""

    def __init__(
        self,
        tokenizer: Decoder,
        runner: RewardRunner,
        *,
        models: Sequence[WeightedModel] = (),
        judges: Sequence[WeightedJudge] = (),
        missing_eos_penalty: float = 0.0,
    ) -> None:
        if missing_eos_penalty < 0:
            raise ValueError(f"missing_eos_penalty is subtracted, so it must be 0 or more, got {missing_eos_penalty}")
        self._tokenizer = tokenizer
        self._runner = runner
        self._models = tuple(models)
        self._judges = tuple(judges)
        self._missing_eos_penalty = missing_eos_penalty

    def score(self, batch: SampleBatch, prompts: Mapping[int, Prompt]) -> tuple[ScoreBatch, ScoreStats]:
        """Scores of every row. `prompts` maps each of the batch's groups to its prompt."""
        responses = self.responses(batch)
        finish = [FinishReason(int(reason)) for reason in batch.finish_reasons]
        lengths = batch.lengths
        data: list[dict[str, Any]] = []
        for row, group in enumerate(batch.groups[batch.group_rows]):
            facts = {"response_tokens": int(lengths[row]), "finish_reason": finish[row].name.lower()}
            data.append({**prompts[int(group)].data, **facts})
        texts = [_prompt_text(self._tokenizer, batch, row, columns) for row, columns in enumerate(data)]
        scored = self._runner.score(texts, responses, data)
        values, parts = scored.values.copy(), dict(scored.parts)
        errors = dict(scored.errors)
        groups = batch.groups[batch.group_rows]
        for kind, part, column in self._asked(groups, texts, responses, data):
            for row in np.flatnonzero(~np.isfinite(column)):
                reason = f"{kind} {part.name!r}, sample {row}: returned {column[row]}"
                errors[int(row)] = "; ".join(filter(None, (errors.get(int(row)), reason)))
            parts[part.name] = np.where(np.isfinite(column), column, np.nan)
            values += part.weight * parts[part.name]
        if self._missing_eos_penalty:
            truncated = np.array([reason is FinishReason.LENGTH for reason in finish], bool)
            parts[MISSING_EOS] = np.where(truncated, -self._missing_eos_penalty, 0.0)
            values += parts[MISSING_EOS]
        scores = ScoreBatch(values, parts, errors)
        return scores, score_stats(scores)

    def _asked(
        self, groups: np.ndarray, texts: list[str], responses: list[str], data: list[dict[str, Any]]
    ) -> Iterator[tuple[str, WeightedModel | WeightedJudge, np.ndarray]]:
        """(what it is, the part, its float64 scores [B]) of each reward model, then of each judge."""
        for rated in self._models:
            chats = [_conversation(t, r, d) for t, r, d in zip(texts, responses, data, strict=True)]
            yield "reward model", rated, np.asarray(rated.model.score_conversations(chats), np.float64)
        for ranked in self._judges:
            yield "judge", ranked, win_shares(ranked.judge, groups, texts, responses, data)

    def responses(self, batch: SampleBatch) -> list[str]:
        """Response texts, special tokens left out."""
        rows = [batch.response_of(row).tolist() for row in range(len(batch))]
        return self._tokenizer.batch_decode(rows, skip_special_tokens=True) if rows else []

    def close(self) -> None:
        self._runner.close()
        for part in self._judges:
            part.judge.close()


def score_stats(scores: ScoreBatch) -> ScoreStats:
    known = scores.values[~np.isnan(scores.values)]
    return ScoreStats(
        count=len(scores),
        failed=len(scores) - len(known),
        mean=float(known.mean()) if len(known) else float("nan"),
        std=float(known.std(ddof=1)) if len(known) > 1 else float("nan"),
        parts={name: _mean(column[~np.isnan(column)]) for name, column in scores.parts.items()},
        errors=tuple(reason for _, reason in sorted(scores.errors.items()))[:ERRORS_KEPT],
    )


def _mean(known: np.ndarray) -> float:
    return float(known.mean()) if len(known) else float("nan")


def _prompt_text(tokenizer: Decoder, batch: SampleBatch, row: int, data: Mapping[str, Any]) -> str:
    """The prompt as its source has it; prompts without a text column are decoded."""
    if "prompt" in data:
        return data["prompt"]
    return tokenizer.batch_decode([batch.prompt_of(row).tolist()], skip_special_tokens=True)[0]


def _conversation(prompt: str, response: str, data: Mapping[str, Any]) -> list[dict[str, str]]:
    messages = data.get("messages", [{"role": "user", "content": prompt}])
    return [*messages, {"role": "assistant", "content": response}]
