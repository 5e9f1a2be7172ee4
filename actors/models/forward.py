"""One forward of a causal language model over a packed micro-batch: log-probs (and entropies) of response tokens.

In: a model and a `MicroBatch`. Out: float32 tensors [n] over its response tokens. The head runs only where a response
token is decided; logits stay in the model's dtype, their reductions are float32, and nothing of size [n, vocabulary]
is kept besides the logits themselves. Left out: losses, gradients' use, the device's choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from actors.models.packing import MicroBatch, micro_batches, padding
from actors.types import SampleBatch

CHUNK = 64
"""Rows of logits reduced at once: bounds the float32 scratch to CHUNK x vocabulary, reused from chunk to chunk (fresh
pages cost more than the arithmetic: on SmolLM2 and 2 cores, 1.3 s against 0.3 s for 700 tokens)."""


@dataclass(frozen=True, slots=True)
class PackedTensors:
    """A micro-batch on a device: input_ids, position_ids [1, L]; attention_mask bool [1, 1, L, L]; logit_positions,
    targets [n]; tree_lengths sum to L."""

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    attention_mask: torch.Tensor
    logit_positions: torch.Tensor
    targets: torch.Tensor
    tree_lengths: tuple[int, ...]

    def arguments(self) -> dict[str, Any]:
        """What a model's forward takes."""
        return {
            "input_ids": self.input_ids,
            "position_ids": self.position_ids,
            "attention_mask": self.attention_mask,
            "tree_lengths": self.tree_lengths,
            "use_cache": False,
        }


def to_tensors(micro: MicroBatch, device: torch.device) -> PackedTensors:
    segments = torch.from_numpy(micro.segments).to(device)
    trees = torch.from_numpy(micro.trees).to(device)
    length = len(micro.token_ids)
    causal = torch.ones(length, length, dtype=torch.bool, device=device).tril_()
    own = (segments[None, :] == 0) | (segments[None, :] == segments[:, None])
    mask = causal & own & (trees[None, :] == trees[:, None])
    return PackedTensors(
        input_ids=torch.from_numpy(micro.token_ids)[None].to(device),
        position_ids=torch.from_numpy(micro.positions)[None].to(device),
        attention_mask=mask[None, None],
        logit_positions=torch.from_numpy(micro.logit_positions).to(device),
        targets=torch.from_numpy(micro.targets).to(device),
        tree_lengths=micro.tree_lengths,
    )


def token_logprobs(
    model: torch.nn.Module, packed: PackedTensors, temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """(log-probs, entropies), each float32 [n], of the response tokens under the temperature-scaled distribution."""
    logits = model(**packed.arguments(), logits_to_keep=packed.logit_positions).logits[0]
    return _LogProbs.apply(logits, packed.targets, 1.0 / temperature)


class _LogProbs(torch.autograd.Function):
    """Selective log-softmax and entropy. With z = logits / temperature, p = softmax(z), H = -sum p log p:
    d lp / d z = onehot - p and d H / d z = -p (log p + H)."""

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, targets: torch.Tensor, scale: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        n = logits.shape[0]
        logprobs = torch.empty(n, dtype=torch.float32, device=logits.device)
        entropies = torch.empty_like(logprobs)
        lse = torch.empty_like(logprobs)
        z_buffer, p_buffer = _scratch(logits), _scratch(logits)
        for i in range(0, n, CHUNK):
            z = z_buffer[: min(CHUNK, n - i)].copy_(logits[i : i + CHUNK]).mul_(scale)
            p = p_buffer[: len(z)]
            top = z.amax(dim=1, keepdim=True)
            torch.sub(z, top, out=p).exp_()
            total = p.sum(dim=1)
            lse[i : i + CHUNK] = total.log() + top[:, 0]
            logprobs[i : i + CHUNK] = z.gather(1, targets[i : i + CHUNK, None])[:, 0] - lse[i : i + CHUNK]
            entropies[i : i + CHUNK] = lse[i : i + CHUNK] - torch.linalg.vecdot(p, z) / total
        ctx.save_for_backward(logits, targets, lse, entropies)
        ctx.scale = scale
        return logprobs, entropies

    @staticmethod
    def backward(
        ctx: Any, grad_logprobs: torch.Tensor, grad_entropies: torch.Tensor
    ) -> tuple[torch.Tensor, None, None]:
        logits, targets, lse, entropies = ctx.saved_tensors
        grad = torch.empty_like(logits)
        with_entropy = bool((grad_entropies != 0).any())
        n = logits.shape[0]
        z_buffer, p_buffer = _scratch(logits), _scratch(logits)
        for i in range(0, n, CHUNK):
            part = slice(i, i + CHUNK)
            logp = z_buffer[: min(CHUNK, n - i)].copy_(logits[part]).mul_(ctx.scale).sub_(lse[part, None])
            out = torch.exp(logp, out=p_buffer[: len(logp)])
            if with_entropy:
                out *= -grad_logprobs[part, None] - grad_entropies[part, None] * (logp + entropies[part, None])
            else:
                out *= -grad_logprobs[part, None]
            out.scatter_add_(1, targets[part, None], grad_logprobs[part, None])
            grad[part] = out.mul_(ctx.scale)
        return grad, None, None


def _scratch(logits: torch.Tensor) -> torch.Tensor:
    return torch.empty(min(CHUNK, logits.shape[0]), logits.shape[1], dtype=torch.float32, device=logits.device)


@torch.no_grad()
def score_tokens(
    model: torch.nn.Module,
    batch: SampleBatch,
    rows: Sequence[int],
    *,
    max_tokens: int,
    temperature: float,
    device: torch.device,
    rank: int = 0,
    ranks: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """(slots, log-probs) of this rank's share of the rows' response tokens, without gradients."""
    slots, logprobs = [], []
    shares = micro_batches(batch, rows, max_tokens, rank=rank, ranks=ranks)
    for micro in shares:
        real = micro if micro is not None else padding(batch, rows[:1], max_tokens)
        lp, _ = token_logprobs(model, to_tensors(real, device), temperature)
        if micro is not None:
            slots.append(micro.slots)
            logprobs.append(lp.cpu().numpy())
    if not slots:
        return np.zeros(0, np.int64), np.zeros(0, np.float32)
    return np.concatenate(slots), np.concatenate(logprobs)
