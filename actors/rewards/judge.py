"""A judge of two responses to one prompt, asked in both orders: wins, ties, and shares of wins within a group.

In: prompts and responses as text. Out: numbers in [0, 1]: 1 where the first of two is better, 0.5 a tie. A judge that
prefers a place and not a response (position bias, Zheng et al. 2023) then calls ties instead of winners. Left out: what
the verdicts are used for (scorer.py ranks samples, cluster/commands/eval.py compares models).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from actors.data.as_text import masked, templated_ids
from actors.rewards.runner import RewardRunner

TEMPLATE = (
    "Two assistants answered the same question. Decide which answer is better.\n\n"
    "Question:\n{prompt}\n\nAnswer A:\n{first}\n\nAnswer B:\n{second}\n\n"
    "Which answer is better? Reply with one letter, A or B."
)


class Judge(Protocol):
    """One order of the question; `swapped` asks both."""

    def prefer(
        self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str], data: Sequence[Mapping[str, Any]]
    ) -> np.ndarray:
        """float64 [n] in [0, 1]: how much the first response is better; NaN where there is no verdict."""

    def close(self) -> None:
        """Leave no process."""


class ModelJudge:
    """A language model that answers A or B: the probability of A against B, as its next token after `template`."""

    def __init__(
        self,
        model_path: str | Path,
        *,
        device: str = "cpu",
        template: str = TEMPLATE,
        max_length: int = 2048,
        max_tokens_per_batch: int = 8192,
    ) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from actors.models.numerics import placed, settle_kernels

        settle_kernels()
        self._torch = torch
        self._tokenizer = AutoTokenizer.from_pretrained(model_path)
        model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.bfloat16)
        self._model = placed(model, device).eval()
        self._device, self._template = device, template
        self._max_length, self._max_tokens = max_length, max_tokens_per_batch
        self._letters = [self._tokenizer.encode(letter, add_special_tokens=False)[0] for letter in "AB"]

    def prefer(
        self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str], data: Sequence[Mapping[str, Any]]
    ) -> np.ndarray:
        questions = [self._ids(p, a, b) for p, a, b in zip(prompts, first, second, strict=True)]
        found = np.full(len(questions), np.nan)
        order = sorted(range(len(questions)), key=lambda row: len(questions[row]))
        while order:
            size = max(1, self._max_tokens // len(questions[order[-1]]))
            rows, order = order[-size:], order[:-size]
            found[rows] = self._forward([questions[row] for row in rows])
        return found

    def close(self) -> None:
        """It has no process of its own."""

    def _ids(self, prompt: str, first: str, second: str) -> list[int]:
        """The question's ids. What was asked and answered is text, whatever it spells: a response that could end its
        turn would write the verdict itself. The template may write control tokens."""
        (prompt, first, second), marks = masked(self._tokenizer, (prompt, first, second), beside=self._template)
        text = self._template.format(prompt=prompt, first=first, second=second)
        ids = templated_ids(self._tokenizer, [{"role": "user", "content": text}], marks, add_generation_prompt=True)
        if len(ids) > self._max_length:
            raise ValueError(
                f"a judge's question of {len(ids)} tokens is past its max_length {self._max_length}; raise it or lower "
                "rollout.sampling.max_tokens"
            )
        return ids

    def _forward(self, rows: list[list[int]]) -> np.ndarray:
        torch, width = self._torch, max(map(len, rows))
        # Left padding: every row's next token stands at the last place.
        ids = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=self._device)
        lengths = torch.tensor([len(row) for row in rows], device=self._device)
        mask = (torch.arange(width, device=self._device)[None] >= width - lengths[:, None]).long()
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        with torch.inference_mode():
            logits = self._model(
                input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False, logits_to_keep=1
            ).logits[:, -1, self._letters]
        return torch.softmax(logits.float(), dim=-1)[:, 0].double().cpu().numpy()


class FunctionJudge:
    """A reward function whose `data["other"]` is the response to compare with: how much response is better, in [0, 1].
    Run out of process like the others; how an outside service is asked."""

    def __init__(self, runner: RewardRunner) -> None:
        self._runner = runner

    def prefer(
        self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str], data: Sequence[Mapping[str, Any]]
    ) -> np.ndarray:
        rows = [{**row, "other": other} for row, other in zip(data, second, strict=True)]
        values = self._runner.score(prompts, first, rows).values
        return np.where((values >= 0.0) & (values <= 1.0), values, np.nan)

    def close(self) -> None:
        self._runner.close()


def swapped(
    judge: Judge,
    prompts: Sequence[str],
    first: Sequence[str],
    second: Sequence[str],
    data: Sequence[Mapping[str, Any]],
) -> np.ndarray:
    """float64 [n]: 1 where the first response wins in both orders, 0 where the second does, 0.5 where the verdict goes
    with the place or is none; NaN where either order has no verdict. Equal texts tie unasked."""
    n = len(prompts)
    same = np.array([a == b for a, b in zip(first, second, strict=True)], bool)
    ask = np.flatnonzero(~same)
    found = np.full(n, 0.5)
    if not len(ask):
        return found

    def pick(column: Sequence[Any]) -> list[Any]:
        return [column[row] for row in ask]

    both = judge.prefer(
        pick(prompts) * 2, pick(first) + pick(second), pick(second) + pick(first), pick(data) * 2
    ).reshape(2, -1)
    verdicts = np.where(both > 0.5, 1.0, np.where(both < 0.5, 0.0, 0.5))
    wins = (verdicts[0] + 1.0 - verdicts[1]) / 2
    # A win in one order alone is a tie, and so is one beside an undecided order.
    settled = np.where((wins == 1.0) | (wins == 0.0), wins, 0.5)
    found[ask] = np.where(np.isnan(both).any(axis=0), np.nan, settled)
    return found


def win_shares(
    judge: Judge,
    groups: Sequence[int] | np.ndarray,
    prompts: Sequence[str],
    responses: Sequence[str],
    data: Sequence[Mapping[str, Any]],
) -> np.ndarray:
    """float64 [B]: each response's share of wins against the others of its group, a tie being half a win (Copeland's
    score); every two are compared in both orders. NaN without a verdict against anyone; a group of one gets 0.5."""
    members: dict[int, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(int(group), []).append(row)
    matches = [pair for rows in members.values() for pair in combinations(rows, 2)]
    left, right = [a for a, _ in matches], [b for _, b in matches]

    def pick(column: Sequence[Any], rows: Sequence[int]) -> list[Any]:
        return [column[row] for row in rows]

    won = swapped(judge, pick(prompts, left), pick(responses, left), pick(responses, right), pick(data, left))
    points, played = np.zeros(len(groups)), np.zeros(len(groups))
    for (a, b), result in zip(matches, won, strict=True):
        if not np.isnan(result):
            points[[a, b]] += (result, 1.0 - result)
            played[[a, b]] += 1
    alone = np.array([len(members[int(group)]) == 1 for group in groups], bool)
    return np.where(alone, 0.5, np.where(played > 0, points / np.maximum(played, 1), np.nan))
