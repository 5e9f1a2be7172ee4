"""What a learner rank is told to hold, and how each of it is built.

In: a `LearnerSpec`. Out: the policy's learner, the critic's, the frozen reference; None for what the spec leaves out.
Heavy imports stand inside the functions, as in learner.py. Left out: when a rank builds, and what it does with them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from learners.engines.settings import ModelSettings
from learners.methods.method import LearnerSettings, Method, Training
from learners.methods.presets import PreferenceSettings, RewardModelSettings

if TYPE_CHECKING:
    import torch
    from torch import nn

    from actors.models.forward import Barred
    from actors.models.reference import ReferenceScorer
    from learners.base import LearnerBase
    from learners.critic import CriticLearner
    from learners.engines.interface import TrainEngine


@dataclass(frozen=True, slots=True)
class LearnerSpec:
    """What one learner group trains. Any of policy (the model that is tuned, a reward model too) and critic may be
    absent: the other group has it; the reference lives with the policy, and is the policy with its adapter off where it
    has one (reference_path None). temperature, min_tokens: of sampling: training divides logits and bars end tokens
    likewise. device: "cpu" or "cuda". transport: how weights go to engines (actors/transports).
    gives_back: engines on its GPU wait for the memory that torch keeps for the next update. saves_later: checkpoints
    are written beside training, from a copy."""

    trains: Training
    policy: LearnerSettings | None
    critic: LearnerSettings | None
    reference_path: str | None
    device: str
    timeout_s: float
    temperature: float = 1.0
    min_tokens: int = 0
    transport: str = "object_store"
    weights_timeout_s: float = 600.0
    gives_back: bool = False
    saves_later: bool = False


def build_policy(spec: LearnerSpec, device: torch.device) -> LearnerBase | None:
    """The learner of the spec's method on the model that is tuned."""
    from learners.engines.models import load_policy, load_reward_model
    from learners.policy import PolicyLearner
    from learners.preference import PreferenceLearner
    from learners.reward import RewardLearner
    from learners.supervised import SupervisedLearner

    settings, trains = spec.policy, spec.trains
    if settings is None:
        return None
    if isinstance(trains, RewardModelSettings):
        return RewardLearner(_engine(settings, load_reward_model, device), trains, settings.update)
    engine = _engine(settings, load_policy, device)
    if isinstance(trains, Method):
        return PolicyLearner(engine, trains, settings.update, _barred(spec, settings))
    if isinstance(trains, PreferenceSettings):
        return PreferenceLearner(engine, trains, settings.update, spec.temperature, _barred(spec, settings))
    return SupervisedLearner(engine, settings.update)


def build_critic(spec: LearnerSpec, device: torch.device) -> CriticLearner | None:
    from learners.critic import CriticLearner
    from learners.engines.models import load_critic

    if spec.critic is None:
        return None
    if not isinstance(spec.trains, Method):
        raise TypeError(f"a critic is of a policy-gradient method, not of {type(spec.trains).__name__}")
    return CriticLearner(_engine(spec.critic, load_critic, device), spec.trains, spec.critic.update)


def build_reference(spec: LearnerSpec) -> ReferenceScorer | None:
    """The frozen reference, run as the policy is."""
    from actors.models.reference import ReferenceScorer

    settings = spec.policy
    if spec.reference_path is None or settings is None:
        return None
    return ReferenceScorer(
        spec.reference_path,
        dtype=settings.model.dtype,
        attention=settings.model.attention,
        temperature=spec.temperature,
        max_tokens=settings.update.micro_batch_tokens,
        device=spec.device,
        trust_remote_code=settings.model.trust_remote_code,
        barred=_barred(spec, settings),
    )


def _barred(spec: LearnerSpec, settings: LearnerSettings) -> Barred | None:
    """What engines bar while a response is shorter than asked for: their end tokens."""
    from actors.engines.limits import end_tokens
    from actors.models.forward import Barred

    return Barred(end_tokens(settings.model.path), spec.min_tokens) if spec.min_tokens else None


def _engine(
    settings: LearnerSettings, load_model: Callable[[ModelSettings], nn.Module], device: torch.device
) -> TrainEngine:
    if settings.backend == "torch":
        from learners.engines.torch_engine import TorchEngine

        return TorchEngine(
            load_model(settings.model), optimizer=settings.optimizer, dtype=settings.model.dtype, device=device
        )
    from learners.engines.deepspeed_engine import DeepSpeedEngine, construction_context

    with construction_context(settings.zero, settings.model.dtype):
        model = load_model(settings.model)
    return DeepSpeedEngine(
        model, zero=settings.zero, optimizer=settings.optimizer, dtype=settings.model.dtype, device=device
    )
