"""One number a response: which function of its prompt's scores each method's advantage is.

In: `Rows` of a batch. Out: advantages [B], before whitening, spread over tokens by the caller. A new one is a function
here, named as `Preset.advantage` names it. Left out: advantages per token (advantages.gae, reward_to_go), the
arithmetic that methods share (advantages.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from learners.methods import advantages as adv


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """scores_B: float64, NaN without a score; groups_B: ids of prompts; valid_B: rows with a score; lengths_B: trained
    tokens; greedy_B: the score of the greedy response to the row's prompt (ReMax alone)."""

    scores_B: Tensor
    groups_B: Tensor
    valid_B: Tensor
    lengths_B: Tensor
    greedy_B: Tensor | None = None


RowAdvantage = Callable[[Rows], Tensor]
ROW_ADVANTAGES: dict[str, RowAdvantage] = {}


def row_advantage(function: RowAdvantage) -> RowAdvantage:
    """Registers a function under its own name."""
    ROW_ADVANTAGES[function.__name__] = function
    return function


@row_advantage
def grpo(rows: Rows) -> Tensor:
    """(S - mean) / (std + 1e-6) within the group (Shao et al. 2024)."""
    return adv.group_advantages(rows.scores_B, rows.groups_B, rows.valid_B, "grpo")


@row_advantage
def dr_grpo(rows: Rows) -> Tensor:
    """S - mean within the group, no division (Liu et al. 2025)."""
    return adv.group_advantages(rows.scores_B, rows.groups_B, rows.valid_B, "dr_grpo")


@row_advantage
def reinforce_pp_baseline(rows: Rows) -> Tensor:
    """S - mean within the group; its preset whitens over the batch (Hu 2025)."""
    return adv.group_advantages(rows.scores_B, rows.groups_B, rows.valid_B, "mean")


@row_advantage
def rloo(rows: Rows) -> Tensor:
    """S - mean of the others; its preset has the token KL inside S (Ahmadian et al. 2024)."""
    return adv.group_advantages(rows.scores_B, rows.groups_B, rows.valid_B, "rloo")


@row_advantage
def opo(rows: Rows) -> Tensor:
    """S - mean within the group, weighted by length (Hao et al. 2025)."""
    return adv.opo(rows.scores_B, rows.groups_B, rows.lengths_B, rows.valid_B)


@row_advantage
def remax(rows: Rows) -> Tensor:
    """S - S of the greedy response (Li et al. 2023)."""
    if rows.greedy_B is None:
        raise ValueError("ReMax needs the scores of greedy responses; pass them as baseline")
    return adv.remax(rows.scores_B, rows.greedy_B, rows.valid_B)
