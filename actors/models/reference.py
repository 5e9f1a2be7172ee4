"""The frozen reference policy: log-probs of other people's samples.

In: a SampleBatch. Out: float32 log-probs on its T axis. The weights are hashed at start so that `digest` proves that
they never changed (METHODS, invariant 2). Left out: what a KL is made of (learners).
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from actors.models.attention import implementation
from actors.models.forward import score_tokens
from actors.models.numerics import placed, settle_kernels
from actors.types import SampleBatch


class ReferenceScorer:
    """Log-probs under frozen weights, temperature as in training."""

    def __init__(
        self,
        model_path: str,
        *,
        dtype: str,
        attention: str,
        temperature: float,
        max_tokens: int,
        device: str,
        trust_remote_code: bool = False,
    ) -> None:
        settle_kernels()
        self._device = torch.device(device)
        model = AutoModelForCausalLM.from_pretrained(
            model_path,
            dtype=getattr(torch, dtype),
            attn_implementation=implementation(attention),
            trust_remote_code=trust_remote_code,
        )
        self._model = placed(model, self._device).eval().requires_grad_(False)
        self._temperature = temperature
        self._max_tokens = max_tokens

    def logprobs(self, batch: SampleBatch, *, rank: int = 0, ranks: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """(slots, log-probs) of this rank's share of the response tokens."""
        return score_tokens(
            self._model,
            batch,
            range(len(batch)),
            max_tokens=self._max_tokens,
            temperature=self._temperature,
            device=self._device,
            rank=rank,
            ranks=ranks,
        )

    def digest(self) -> str:
        """Hash of all parameters, to compare before and after."""
        h = hashlib.sha256()
        for name, tensor in self._model.named_parameters():
            h.update(name.encode())
            h.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return h.hexdigest()
