"""A reward model: sequence classification with one label, batched.

In: whole conversations (templated with this model's own tokenizer) or token ids. Out: one float64 score a sequence,
read at its last real token, whichever side is padded and also when the pad token is the end-of-sequence token (so
padding is told by the mask, never by the token). Left out: weights and sums (actors/rewards/scorer.py), training.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from actors.data.as_text import chat_ids, plain_ids
from actors.data.tokenizer import Message
from actors.models.numerics import placed, settle_kernels


class RewardModel:
    """Loaded once, scores many batches. max_tokens_per_batch bounds padded tokens in one forward.

    max_length: longer sequences keep their last tokens, where the response is; `truncated` counts them.
    """

    def __init__(
        self,
        model_path: str | Path,
        *,
        device: str = "cpu",
        dtype: torch.dtype = torch.bfloat16,
        max_length: int = 4096,
        max_tokens_per_batch: int = 16384,
    ) -> None:
        self.model = placed(load_classifier(model_path, dtype), device).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(model_path)
        self.device = torch.device(device)
        self.max_length = max_length
        self.max_tokens_per_batch = max_tokens_per_batch
        self.truncated = 0

    def score_conversations(self, conversations: Sequence[list[Message]]) -> np.ndarray:
        """Scores of conversations that end with the assistant's turn, float64 [B]. Messages are text, whatever they
        spell: a response cannot end its turn and go on with another."""
        if not self.tokenizer.chat_template:
            texts = ["\n".join(message["content"] for message in chat) for chat in conversations]
            return self.score_tokens([plain_ids(self.tokenizer, text) for text in texts])
        return self.score_tokens([chat_ids(self.tokenizer, chat) for chat in conversations])

    def score_tokens(self, sequences: Sequence[Sequence[int]]) -> np.ndarray:
        """Scores of token sequences, float64 [B], in the order given; longest first in the forwards."""
        if any(len(s) == 0 for s in sequences):
            raise ValueError("a reward model cannot score an empty sequence")
        self.truncated += sum(len(s) > self.max_length for s in sequences)
        cut = [list(s)[-self.max_length :] for s in sequences]
        scores = np.full(len(cut), np.nan)
        for rows in _token_batches([len(s) for s in cut], self.max_tokens_per_batch):
            scores[rows] = self._forward([cut[row] for row in rows])
        return scores

    @torch.inference_mode()
    def _forward(self, sequences: list[list[int]]) -> np.ndarray:
        width = max(map(len, sequences))
        # Right padding with 0: any id will do, the mask alone says what is real.
        ids_BT = torch.tensor([s + [0] * (width - len(s)) for s in sequences], device=self.device)
        lengths_B = torch.tensor([len(s) for s in sequences], device=self.device)
        mask_BT = (torch.arange(width, device=self.device)[None] < lengths_B[:, None]).long()
        return score_batch(self.model, ids_BT, mask_BT).double().cpu().numpy()


class ScoreHead(nn.Linear):
    """A head that multiplies and answers in float32, whatever the trunk's dtype: a bfloat16 score near 10 would move
    in steps of 1/16, and pairs that differ by less would tie."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        bias = None if self.bias is None else self.bias.float()
        return nn.functional.linear(hidden.float(), self.weight.float(), bias)


def exact_head(model: PreTrainedModel) -> PreTrainedModel:
    """The classifier with its `score` head, if it has a linear one, as a `ScoreHead` of the same parameters."""
    head = getattr(model, "score", None)
    if isinstance(head, nn.Linear):
        with torch.device("meta"):
            exact = ScoreHead(head.in_features, head.out_features, bias=head.bias is not None)
        exact.weight, exact.bias = head.weight, head.bias
        model.score = exact
    return model


def score_batch(model: PreTrainedModel, ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """float32 [B]: the head's value at each row's last position where `mask_BT` is 1, padding on either side.

    Models without a per-token `score` head (encoders, which pool at their first token) use their own pooling.
    """
    if not hasattr(model, "score"):
        return model(input_ids=ids_BT, attention_mask=mask_BT).logits[:, 0].float()
    positions_BT = (mask_BT.cumsum(-1) - 1).clamp(min=0)
    hidden_BTD = model.base_model(
        input_ids=ids_BT, attention_mask=mask_BT, position_ids=positions_BT, use_cache=False
    ).last_hidden_state
    places_T = torch.arange(ids_BT.shape[1], device=ids_BT.device)
    last_B = (places_T * mask_BT).argmax(-1)
    last_BD = hidden_BTD[torch.arange(len(ids_BT), device=ids_BT.device), last_B]
    return model.get_submodule("score")(last_BD)[:, 0].float()


def load_classifier(model_path: str | Path, dtype: torch.dtype) -> PreTrainedModel:
    """The model with its one-label head; ValueError when the checkpoint has no such head."""
    settle_kernels()
    model, info = AutoModelForSequenceClassification.from_pretrained(model_path, dtype=dtype, output_loading_info=True)
    labels = model.config.num_labels
    made_up = sorted(info["missing_keys"])
    if made_up:
        kind = ", ".join(model.config.architectures or ["unknown"])
        raise ValueError(
            f"{model_path} has no trained reward head ({', '.join(made_up[:3])} would be random; saved as {kind}); "
            "give a sequence-classification checkpoint with num_labels 1"
        )
    if labels != 1:
        raise ValueError(
            f"{model_path} has {labels} labels, a reward model has one; retrain or export its head with num_labels 1"
        )
    return exact_head(model)


def _token_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Rows in batches of rows x longest <= max_tokens (a longer row goes alone), longest first."""
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= max_tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches
