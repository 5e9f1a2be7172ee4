"""How a token is drawn, the same in every engine: one uniform number a token, a pure function of seed and position.

In: logits of the rows to sample, their temperatures or limits, each row's seed and the index of the token to make.
Out: the tokens and the log-probs of the sampling distribution. Because the number is computed, not taken from a
generator's state, a sample does not depend on what else is in the batch, on the order of submission, on chunked
prefills or preemptions, and it can go on in another engine from the token where it stopped. Drawing by inverting the
cumulative distribution also needs one number a row where a generator a row needs one per vocabulary entry, which on
CPU costs as much as the model's forward. Left out: penalties, beam search.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

_GOLDEN, _MIX_1, _MIX_2 = (np.uint64(c) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_BITS = 24
"""Of the uniforms: the most that keeps `u * total < total` in float32."""


def uniforms(seeds: Sequence[int], positions: Sequence[int]) -> np.ndarray:
    """Uniform numbers in [0, 1), float32 [B]: splitmix64's finaliser (Steele et al. 2014) over seed and position."""
    x = _mix(np.asarray(seeds, np.uint64)) + _GOLDEN * (np.asarray(positions, np.uint64) + np.uint64(1))
    return ((_mix(x) >> np.uint64(64 - _BITS)).astype(np.float64) / (1 << _BITS)).astype(np.float32)


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))


def restrict(logits_BV: torch.Tensor, top_k_B: torch.Tensor | None, top_p_B: torch.Tensor | None) -> torch.Tensor:
    """Logits with -inf outside the kept set: first the top k, then the smallest set of those whose probability
    reaches p (Holtzman et al. 2020). None, and k of the vocabulary's size or p of 1, keep everything."""
    if top_k_B is None and top_p_B is None:
        return logits_BV
    ordered, order = logits_BV.sort(dim=-1, descending=True, stable=True)
    if top_k_B is not None:
        rank_V = torch.arange(ordered.shape[-1], device=ordered.device)
        ordered = ordered.masked_fill(rank_V >= top_k_B[:, None], -torch.inf)
    if top_p_B is not None:
        probs = ordered.softmax(dim=-1)
        before = probs.cumsum(dim=-1) - probs
        # The most likely token always stays; p = 1 must not drop a tail whose sum rounds to 1.
        dropped = (before >= top_p_B[:, None]) & (top_p_B[:, None] < 1)
        dropped[:, 0] = False
        ordered = ordered.masked_fill(dropped, -torch.inf)
    return torch.empty_like(ordered).scatter_(-1, order, ordered)


def draw(
    logits_BV: torch.Tensor, uniforms_B: np.ndarray, top_k_B: torch.Tensor | None, top_p_B: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token a row (int64 [B]) from float32 logits already divided by the temperature, and the log-probs of the
    distribution it was drawn from, float32 [B, V]."""
    logprobs_BV = restrict(logits_BV, top_k_B, top_p_B).log_softmax(dim=-1, dtype=torch.float32)
    cumulative_BV = logprobs_BV.exp().cumsum_(dim=-1)
    points_B1 = torch.from_numpy(uniforms_B).to(logits_BV.device)[:, None] * cumulative_BV[:, -1:]
    tokens_B = torch.searchsorted(cumulative_BV, points_B1, right=True)[:, 0]
    return tokens_B.clamp_(max=logits_BV.shape[-1] - 1), logprobs_BV
