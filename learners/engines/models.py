"""Build the networks that learn: the policy, the critic and the reward model, whose heads start at zero.

In: ModelSettings. Out: nn.Modules in their compute dtype, without dropout (METHODS: dropout is off in every forward
that produces log-probs). Left out: ZeRO (the engines'), forwards over packed rows (actors.models.forward).
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from actors.models.adapters import attach
from actors.models.attention import implementation
from actors.models.forward import PackedTensors
from actors.models.numerics import settle_kernels
from actors.models.reward_model import exact_head
from learners.engines.settings import ModelSettings

Network = TypeVar("Network", bound=nn.Module)


def load_policy(settings: ModelSettings) -> PreTrainedModel:
    """A causal language model. Its `named_parameters` are the Hugging Face names that the engines load."""
    model = AutoModelForCausalLM.from_pretrained(settings.path, **_arguments(settings))
    return _prepared(model, model, settings)


class ValueModel(nn.Module):
    """A trunk and a linear head to one number; the value for deciding token t is read at position t-1."""

    def __init__(self, trunk: PreTrainedModel, hidden_size: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.value_head = nn.Linear(hidden_size, 1, dtype=trunk.dtype)
        # Zero, so that the first advantages are the returns themselves and not a random critic's noise.
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)

    def forward(self, packed: PackedTensors) -> torch.Tensor:
        """Values, float32 [n], one for each response token of the packed row."""
        hidden = self.trunk(**packed.arguments()).last_hidden_state[0]
        return self.value_head(hidden[packed.logit_positions])[:, 0].float()


def load_critic(settings: ModelSettings) -> ValueModel:
    """The critic: the trunk of `settings.path`, its first `layers` if given."""
    arguments = _arguments(settings)
    if settings.layers is not None:
        config = AutoConfig.from_pretrained(settings.path, trust_remote_code=settings.trust_remote_code)
        if not 1 <= settings.layers <= config.num_hidden_layers:
            raise ValueError(
                f"critic.layers is {settings.layers}; the model has {config.num_hidden_layers}, give 1 to that many"
            )
        config.num_hidden_layers = settings.layers
        arguments["config"] = config
    trunk = AutoModel.from_pretrained(settings.path, **arguments)
    return _prepared(ValueModel(trunk, trunk.config.hidden_size), trunk, settings)


class RewardNetwork(nn.Module):
    """A sequence-classification model with one label; a row's score is read at its last token."""

    def __init__(self, classifier: PreTrainedModel) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, packed: PackedTensors, row_ends: torch.Tensor) -> torch.Tensor:
        """Scores, float32 [b]; row_ends: [b], where each row's last token stands in the packed row."""
        hidden = self.classifier.base_model(**packed.arguments()).last_hidden_state[0]
        return self.classifier.get_submodule("score")(hidden[row_ends])[:, 0]


def load_reward_model(settings: ModelSettings) -> RewardNetwork:
    """A reward model to train: its own head where the checkpoint has one, else one that starts at zero."""
    model, info = AutoModelForSequenceClassification.from_pretrained(
        settings.path, num_labels=1, output_loading_info=True, **_arguments(settings)
    )
    if not hasattr(model, "score"):
        raise ValueError(
            f"{type(model).__name__} pools its tokens in a way of its own; a reward model is trained from a causal "
            "language model"
        )
    if any(name.startswith("score.") for name in info["missing_keys"]):
        nn.init.zeros_(model.score.weight)
    return _prepared(RewardNetwork(exact_head(model)), model, settings)


def _arguments(settings: ModelSettings) -> dict:
    return {
        "dtype": getattr(torch, settings.dtype),
        "attn_implementation": implementation(settings.attention),
        "trust_remote_code": settings.trust_remote_code,
    }


def _prepared(model: Network, trunk: PreTrainedModel, settings: ModelSettings) -> Network:
    """trunk: the transformers model within."""
    settle_kernels()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        _no_dropout(module)  # attention layers keep the config's rate as a number of their own
    _no_dropout(trunk.config)
    if settings.lora is not None:
        attach(trunk, settings.lora)
        if isinstance(model, RewardNetwork):
            # It starts at zero or was another's: nothing is learned without it.
            trunk.get_submodule("score").requires_grad_(True)
    if settings.gradient_checkpointing:
        # Checkpointing is off in eval mode; with every dropout at 0, train mode computes the same.
        trunk.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train()


def _no_dropout(holder: object) -> None:
    """Every rate of dropping (attention_dropout, attn_pdrop, layerdrop, ...) that the object holds becomes 0."""
    for name, value in list(vars(holder).items()):
        if isinstance(value, float) and "drop" in name:
            setattr(holder, name, 0.0)
