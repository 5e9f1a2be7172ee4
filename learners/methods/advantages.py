"""Advantages: from scores and values to what each response token is worth.

In: rewards, values and a mask padded [B, T], or scores [B] with group ids and a flag per row that has a score. Out:
advantages, no gradient, zero outside the mask. Time runs over unmasked tokens only: a tool's tokens in the middle are
skipped as if they were not there. Rows without a score leave every statistic and get 0; removing them from the loss's
mask is the batch builder's. Left out on purpose: which of these a method uses (`presets`) and the all-reduce between
ranks (`Moments` are the values to exchange; group scores must be whole, see `group_advantages`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from learners.methods.aggregation import masked, real
from learners.methods.kl import kl_tokens

# --- rewards ---


def penalise_truncated(scores_B: Tensor, truncated_B: Tensor, penalty: float) -> Tensor:
    """Missing-EOS penalty: subtracted from truncated rows only."""
    return torch.where(truncated_B, real(scores_B) - penalty, real(scores_B))


def place_sequence_reward(scores_B: Tensor, mask_BT: Tensor) -> Tensor:
    """Rewards [B, T]: each row's score on its last real response token, 0 elsewhere; a row without tokens has none.

    ValueError if a row that still has tokens has no finite score: "no score" is never 0 and never spreads.
    """
    lacking_B = mask_BT.any(dim=-1) & ~torch.isfinite(scores_B)
    if bool(lacking_B.any()):
        rows = lacking_B.nonzero().flatten().tolist()
        raise ValueError(f"Rows {rows} have response tokens but no score; remove rows without a score from the mask.")
    # The last token is the one at which the running count reaches the row's total for the first time.
    running_BT = mask_BT.cumsum(dim=-1)
    last_BT = mask_BT & (running_BT == running_BT[:, -1:])
    return masked(scores_B[:, None].expand(mask_BT.shape), last_BT)


def kl_penalised_rewards(
    rewards_BT: Tensor, old_BT: Tensor, ref_BT: Tensor, mask_BT: Tensor, coef: float, kind: str = "k1"
) -> Tensor:
    """rewards - coef * KL(old, ref) per token (Ziegler et al. 2019, eq. 2; k1 is the default of PPO). Nats."""
    kl_BT = kl_tokens(masked(old_BT.detach(), mask_BT), masked(ref_BT.detach(), mask_BT), kind)
    return masked(rewards_BT, mask_BT) - coef * kl_BT


def kl_penalised_scores(
    scores_B: Tensor, old_BT: Tensor, ref_BT: Tensor, mask_BT: Tensor, coef: float, kind: str = "k1"
) -> Tensor:
    """S - coef * KL summed over the row's tokens: RLOO's score (Ahmadian et al. 2024). No other method's."""
    kl_BT = kl_tokens(masked(old_BT.detach(), mask_BT), masked(ref_BT.detach(), mask_BT), kind)
    return real(scores_B) - coef * kl_BT.sum(dim=-1)


# --- per token ---


@torch.no_grad()
def gae(rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """(advantages, returns), GAE (Schulman et al. 2015, eq. 16): delta_t = r_t + gamma V_{t+1} - V_t and
    G_t = delta_t + gamma lam G_{t+1}, t+1 being the next unmasked token; past the last one V and G are 0.

    values_BT[t] is the value for deciding token t. returns = G + V before any whitening. Rewards outside the mask are
    not seen.
    """
    rewards_BT, values_BT = masked(rewards_BT, mask_BT), masked(values_BT, mask_BT)
    advantages_BT = torch.zeros_like(rewards_BT + values_BT)
    next_value_B = carried_B = advantages_BT.new_zeros(len(advantages_BT))
    for t in range(mask_BT.shape[1] - 1, -1, -1):
        here_B = mask_BT[:, t]
        delta_B = rewards_BT[:, t] + gamma * next_value_B - values_BT[:, t]
        carried_B = torch.where(here_B, delta_B + gamma * lam * carried_B, carried_B)
        next_value_B = torch.where(here_B, values_BT[:, t], next_value_B)
        advantages_BT[:, t] = carried_B
    advantages_BT = masked(advantages_BT, mask_BT)
    return advantages_BT, advantages_BT + values_BT


def spread_over_tokens(advantages_B: Tensor, mask_BT: Tensor) -> Tensor:
    """A row's advantage on each of its tokens."""
    return masked(advantages_B[:, None].expand(mask_BT.shape), mask_BT)


@dataclass(frozen=True, slots=True)
class Moments:
    """Count, mean and summed squared deviation of unmasked values: what ranks exchange to whiten as one batch.

    Merged pairwise (Chan et al. 1979), in rank order on every rank, so that all get the same bits.
    """

    count: float
    mean: float
    squares: float

    @property
    def variance(self) -> float:
        """With Bessel's correction; 0 for fewer than two values."""
        return self.squares / (self.count - 1.0) if self.count > 1 else 0.0

    @staticmethod
    def merge(parts: Iterable[Moments]) -> Moments:
        count, mean, squares = 0.0, 0.0, 0.0
        for part in parts:
            if part.count == 0:
                continue
            both = count + part.count
            gap = part.mean - mean
            mean += gap * part.count / both
            squares += part.squares + gap * gap * count * part.count / both
            count = both
        return Moments(count, mean, squares)


def moments(x_BT: Tensor, mask_BT: Tensor) -> Moments:
    """This tensor's moments over the mask, in float64."""
    values = x_BT.detach()[mask_BT].double()
    if values.numel() == 0:
        return Moments(0.0, 0.0, 0.0)
    mean = values.mean()
    return Moments(float(values.numel()), float(mean.item()), float((values - mean).square().sum().item()))


@torch.no_grad()
def masked_whiten(x_BT: Tensor, mask_BT: Tensor, over: Moments | None = None) -> Tensor:
    """(x - mean) / sqrt(var + 1e-8) over the mask, Bessel's variance, padding zeroed. over: the moments of the whole
    batch where this tensor is only a part of it (None: it is the whole)."""
    over = moments(x_BT, mask_BT) if over is None else over
    return masked((masked(x_BT, mask_BT) - over.mean) / math.sqrt(over.variance + 1e-8), mask_BT)


# --- per group ---


@dataclass(frozen=True, slots=True, eq=False)
class _Groups:
    """Scores by group, in float64. index_B: each row's group; the rest per group [G] but scores_B and valid_B."""

    index_B: Tensor
    scores_B: Tensor
    valid_B: Tensor
    count_G: Tensor
    order_B: Tensor

    def sums(self, x_B: Tensor) -> Tensor:
        """Per-group sums of x, added in the order of the scores: the order of the rows changes no bit (on CPU)."""
        zeros_G = torch.zeros_like(self.count_G)
        return zeros_G.index_add(0, self.index_B[self.order_B], x_B[self.order_B])

    def means(self, x_B: Tensor) -> Tensor:
        """Each row's group mean of x, [B]."""
        return (self.sums(x_B) / self.count_G.clamp(min=1.0))[self.index_B]

    def spread(self) -> Tensor:
        """[B] whether the row's group has two different scores. Exact: a std of equal numbers may round to 1e-17."""
        return (self._highest(self.scores_B) > -self._highest(-self.scores_B))[self.index_B]

    def _highest(self, x_B: Tensor) -> Tensor:
        none_G = torch.full_like(self.count_G, -torch.inf)
        return none_G.scatter_reduce(0, self.index_B, x_B.masked_fill(~self.valid_B, -torch.inf), "amax")


def _grouped(scores_B: Tensor, groups_B: Tensor, valid_B: Tensor | None) -> _Groups:
    valid_B = torch.isfinite(scores_B) if valid_B is None else valid_B & torch.isfinite(scores_B)
    scores_B = masked(scores_B.detach().double(), valid_B)
    ids_G, index_B = torch.unique(groups_B, return_inverse=True)
    count_G = torch.zeros(len(ids_G), dtype=torch.float64, device=scores_B.device)
    count_G = count_G.index_add(0, index_B, valid_B.double())
    return _Groups(index_B, scores_B, valid_B, count_G, torch.argsort(scores_B))


def groups_with_spread(scores_B: Tensor, groups_B: Tensor, valid_B: Tensor | None = None) -> Tensor:
    """[B] True where the row's group has at least two different scores (DAPO resamples the other groups)."""
    return _grouped(scores_B, groups_B, valid_B).spread()


def group_advantages(scores_B: Tensor, groups_B: Tensor, valid_B: Tensor | None, kind: str) -> Tensor:
    """[B] advantages of each score against its group, the rows with the same id in `groups_B`, in any order.

    grpo (Shao et al. 2024): (S - mean) / (std + 1e-6), unbiased std; a group of one or without spread gets 0.
    dr_grpo (Liu et al. 2025) and mean: S - mean. rloo (Ahmadian et al. 2024): S - mean of the others; a group of one
    gets 0. A group without spread gives exactly 0 in each. Rows that are not valid, or whose score is not finite, leave
    the statistics and get 0. Groups must be whole: where ranks share a group, gather the scores first. In float64.
    """
    g = _grouped(scores_B, groups_B, valid_B)
    deviation_B = masked(g.scores_B - g.means(g.scores_B), g.valid_B & g.spread())
    count_B = g.count_G[g.index_B]
    if kind == "grpo":
        variance_B = (g.sums(deviation_B.square()) / (g.count_G - 1.0).clamp(min=1.0))[g.index_B]
        out_B = deviation_B / (variance_B.sqrt() + 1e-6)
    elif kind in ("dr_grpo", "mean"):
        out_B = deviation_B
    elif kind == "rloo":
        # S - (sum - S) / (n - 1) is n / (n - 1) times the deviation from the mean.
        out_B = deviation_B * count_B / (count_B - 1.0).clamp(min=1.0)
    else:
        raise ValueError(f"The group advantage is {kind!r}; set it to one of grpo, dr_grpo, mean, rloo.")
    return out_B.to(real(scores_B).dtype)


def opo(scores_B: Tensor, groups_B: Tensor, lengths_B: Tensor, valid_B: Tensor | None) -> Tensor:
    """[B] S - sum(l S) / sum(l) within the group, l = response lengths in tokens: the baseline of least variance when a
    gradient's size grows with length (OPO, Hao et al. 2025)."""
    g = _grouped(scores_B, groups_B, valid_B)
    lengths_B = masked(lengths_B.double(), g.valid_B)
    weight_G = g.sums(lengths_B)
    baseline_G = g.sums(lengths_B * g.scores_B) / weight_G.clamp(min=1.0)
    out_B = masked(g.scores_B - baseline_G[g.index_B], g.valid_B & (weight_G > 0)[g.index_B])
    return out_B.to(real(scores_B).dtype)


def remax(scores_B: Tensor, greedy_scores_B: Tensor, valid_B: Tensor | None = None) -> Tensor:
    """[B] S - S of the greedy response to the same prompt (ReMax, Li et al. 2023); 0 where either is missing."""
    both_B = torch.isfinite(scores_B) & torch.isfinite(greedy_scores_B)
    both_B = both_B if valid_B is None else both_B & valid_B
    return masked(scores_B.detach(), both_B) - masked(greedy_scores_B.detach(), both_B)


# --- whitened over the batch ---


def reward_to_go(rewards_BT: Tensor, mask_BT: Tensor, gamma: float = 1.0) -> Tensor:
    """sum over later unmasked tokens s of gamma^(s - t) r_s, [B, T]: GAE with no values and lam 1."""
    return gae(rewards_BT, torch.zeros_like(real(rewards_BT)), mask_BT, gamma, 1.0)[0]


def reinforce_pp(rewards_BT: Tensor, mask_BT: Tensor, gamma: float = 1.0, over: Moments | None = None) -> Tensor:
    """REINFORCE++ (Hu 2025): reward-to-go per token, whitened over the batch. rewards_BT holds the per-token KL penalty
    and the score on the last token. over: moments of `reward_to_go` over all ranks."""
    return masked_whiten(reward_to_go(rewards_BT, mask_BT, gamma), mask_BT, over)


def reinforce_pp_baseline(
    scores_B: Tensor,
    groups_B: Tensor,
    mask_BT: Tensor,
    valid_B: Tensor | None = None,
    over: Moments | None = None,
) -> Tensor:
    """REINFORCE++-baseline (Hu 2025): S - group mean (no std) on every token, whitened over the batch's tokens.
    over: moments over all ranks of `spread_over_tokens(group_advantages(..., "mean"), mask)`, valid rows only."""
    valid_B = torch.isfinite(scores_B) if valid_B is None else valid_B & torch.isfinite(scores_B)
    mask_BT = mask_BT & valid_B[:, None]
    centred_B = group_advantages(scores_B, groups_B, valid_B, "mean")
    return masked_whiten(spread_over_tokens(centred_B, mask_BT), mask_BT, over)
