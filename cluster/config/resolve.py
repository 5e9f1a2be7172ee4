"""From a checked config to the settings each role takes. Pure; imports neither torch, Ray nor vLLM.

In: a Config (and, where it depends on them, the resolved model path and the machine's resources). Out: the frozen
settings of actors and learners. Left out: checks (cluster/config/rules/general.py).
"""

from __future__ import annotations

import dataclasses
import math

from actors.engines.interface import EngineSettings
from actors.models.lora import LoraSettings
from actors.types import SamplingSettings
from cluster.config.schema import Config, Critic
from cluster.config.sections.optimizer import Optimizer, Zero
from cluster.pool.admission import Admission
from cluster.pool.autoscale import AutoscaleSettings
from cluster.pool.members.recovery import RecoveryLimits
from learners.engines.settings import ModelSettings, OptimizerSettings, ZeroSettings
from learners.methods.method import LearnerSettings, Method, SupervisedSettings, Training, UpdateSettings
from learners.methods.presets import (
    PREFERENCE_PRESETS,
    PRESETS,
    REFERENCE_FREE,
    PreferenceSettings,
    Preset,
    RewardModelSettings,
)

OWN_GPU = 0.85
"""Share of the memory of a GPU that an engine has for itself."""


def resolve_preset(config: Config) -> Preset:
    """The algorithm's preset with the config's overrides. ValueError as the presets' own checks say it."""
    a = config.algorithm
    preset = PRESETS[a.name]
    place = preset.kl_place if a.kl.place is None else a.kl.place
    kind = preset.kl_kind if a.kl.kind is None else a.kl.kind
    coef = preset.kl_coef if a.kl.coef is None else a.kl.coef
    in_loss = place == "loss"
    advantage = a.advantage or preset.advantage
    loss = dataclasses.replace(
        preset.loss,
        kl_kind=kind if in_loss else None,
        kl_coef=coef if in_loss else 0.0,
        correction=correction_kind(config),
        correction_cap=a.correction.cap,
        correction_floor=a.correction.floor,
        horizon=float(config.rollout.sampling.max_tokens),
        **a.loss.model_dump(exclude={"filter_overlong"}, exclude_none=True),
    )
    return dataclasses.replace(
        preset,
        loss=loss,
        kl_place=place,
        kl_kind=kind,
        kl_coef=coef if place != "none" else 0.0,
        advantage=advantage,
        # RLOO's score alone holds the reward's KL, under whatever name it is used.
        score_includes_kl=advantage == "rloo" and place == "reward",
        **_given(whiten=a.whiten, filter_overlong=a.loss.filter_overlong, resample_flat_groups=a.resample.flat_groups),
    )


def max_staleness(config: Config) -> int:
    """Weight versions between a prompt's admission and its training, at most."""
    schedule = config.rollout.schedule
    return {"synchronous": 0, "one_step_off": 1}.get(schedule.kind, schedule.max_staleness or 1)


def admission(config: Config) -> Admission:
    """How many prompts may be under way."""
    schedule, batch = config.rollout.schedule, config.rollout.prompts_per_step
    ahead = math.ceil((schedule.over_provision - 1.0) * batch) if schedule.kind == "partial" else None
    return Admission(batch, max_staleness(config), ahead)


def autoscale_settings(config: Config) -> AutoscaleSettings | None:
    scale = config.rollout.autoscale
    if scale is None:
        return None
    overlap = config.rollout.schedule.kind in ("one_step_off", "asynchronous")
    return AutoscaleSettings(**scale.model_dump(), overlap=overlap)


def correction_kind(config: Config) -> str:
    """Stale samples are corrected unless the config says otherwise."""
    return config.algorithm.correction.kind or ("token_tis" if max_staleness(config) else "none")


def resolve_method(config: Config) -> Method:
    return Method(
        preset=resolve_preset(config),
        gamma=config.algorithm.gamma,
        gae_lambda=config.algorithm.gae_lambda,
        value_clip=config.critic.value_clip if config.critic else None,
        temperature=config.rollout.sampling.temperature,
    )


def preference_settings(config: Config) -> PreferenceSettings:
    own = PREFERENCE_PRESETS[config.algorithm.name]
    given = config.algorithm.preference.model_dump(exclude={"pairs_per_step"}, exclude_none=True)
    settings = dataclasses.replace(own, **given)
    return dataclasses.replace(settings, judged=settings.loss == "kto" and config.row_kind == "responses")


def training(config: Config) -> Training:
    """What the learner group is told to do."""
    name = config.algorithm.name
    if name == "sft":
        return SupervisedSettings()
    if name == "reward_model":
        settings = config.algorithm.reward_model
        return RewardModelSettings(config.row_kind == "responses", settings.centre_coef)
    return preference_settings(config) if name in PREFERENCE_PRESETS else resolve_method(config)


def has_reference(config: Config) -> bool:
    """Whether the method compares with a frozen reference: the model that the run began with."""
    name = config.algorithm.name
    if config.algorithm.on_preferences:
        return preference_settings(config).loss not in REFERENCE_FREE
    return config.algorithm.online and (name == "online_dpo" or resolve_preset(config).kl_place != "none")


def needs_reference(config: Config) -> bool:
    """Whether a frozen reference is loaded beside the policy. Offline its log-probs are computed once, by the policy
    before its first step; with an adapter it is the policy with the adapter off."""
    return config.algorithm.online and config.model.lora is None and has_reference(config)


def sampling_settings(config: Config) -> SamplingSettings:
    """Sampling while training."""
    s = config.rollout.sampling
    return SamplingSettings(
        temperature=s.temperature,
        top_p=s.top_p,
        top_k=s.top_k,
        max_tokens=s.max_tokens,
        min_tokens=s.min_tokens,
        stop=tuple(s.stop),
        samples_per_prompt=s.samples_per_prompt,
        seed=config.seed,
    )


def evaluation_settings(config: Config) -> SamplingSettings:
    """One response per held-out prompt; seeds apart from training's."""
    s, e = config.rollout.sampling, config.evaluation
    return SamplingSettings(
        temperature=e.temperature,
        max_tokens=e.max_tokens or s.max_tokens,
        stop=tuple(s.stop),
        samples_per_prompt=1,
        seed=config.seed + 1_000_003,
    )


def engine_settings(config: Config, model_path: str) -> EngineSettings:
    r = config.rollout
    return EngineSettings(
        model_path=model_path,
        dtype=config.model.dtype,
        max_model_len=config.model.max_length,
        max_num_seqs=r.max_num_seqs,
        kv_cache_bytes=int(r.kv_cache_gb * (1 << 30)),
        gpu_memory_utilization=gpu_memory_utilization(config),
        tensor_parallel=r.tensor_parallel,
        enforce_eager=r.enforce_eager,
        seed=config.seed,
        sleep_level=r.sleep_level,
        lora=lora_settings(config),
    )


def gpu_memory_utilization(config: Config) -> float:
    """The share of its memory that an engine takes of a GPU of its own."""
    given = config.rollout.gpu_memory_utilization
    return OWN_GPU if given is None else given


def saves_later(config: Config, device: str) -> bool:
    """Whether checkpoints are written beside training, from a copy in host memory."""
    wanted = config.checkpoint.asynchronous
    return device != "cpu" if wanted is None else wanted


def recovery_limits(config: Config) -> RecoveryLimits:
    recovery = config.recovery
    # Where bits count no ticket moves half-made; engines that sleep come back by a publish alone.
    whole = config.deterministic or config.rollout.sleep_level > 0
    return RecoveryLimits(
        failures=recovery.worker_failures,
        attempts=recovery.attempts,
        silence_s=recovery.silence_s,
        progress_s=config.rollout.stall_timeout_s,
        backoff_s=recovery.backoff_s,
        spares=recovery.spares,
        slow_factor=None if whole else recovery.slow_factor,
    )


def lora_settings(config: Config) -> LoraSettings | None:
    """The policy's (or the reward model's) adapter; a critic is tuned whole."""
    lora = config.model.lora
    if lora is None:
        return None
    targets = None if lora.targets == "all-linear" else tuple(lora.targets)
    return LoraSettings(lora.rank, lora.alpha, targets, config.seed, lora.export)


def policy_settings(config: Config, model_path: str, total_steps: int) -> LearnerSettings:
    return LearnerSettings(
        model=dataclasses.replace(_model(config, model_path, layers=None), lora=lora_settings(config)),
        optimizer=_optimizer(config.learner.optimizer, total_steps),
        zero=_zero(config.learner.zero),
        update=_update(config),
        backend=config.learner.backend,
    )


def own_critic(config: Config) -> Critic:
    """The critic section, for who knows that there is one; ValueError where there is none."""
    if config.critic is None:
        raise ValueError("this config has no critic section")
    return config.critic


def critic_settings(config: Config, critic_path: str, total_steps: int) -> LearnerSettings:
    critic = own_critic(config)
    return LearnerSettings(
        model=_model(config, critic_path, layers=critic.layers),
        optimizer=_optimizer(critic.optimizer, total_steps),
        zero=_zero(critic.zero),
        update=_update(config),
        backend=config.learner.backend,
    )


def optimizer_steps(config: Config, steps: int) -> int:
    """Optimiser steps of `steps` training steps: what the learning-rate schedule counts."""
    return steps * config.learner.epochs * config.learner.minibatches


def _update(config: Config) -> UpdateSettings:
    learner = config.learner
    return UpdateSettings(
        epochs=learner.epochs,
        minibatches=learner.minibatches,
        micro_batch_tokens=learner.micro_batch_tokens,
        seed=config.seed,
    )


def _model(config: Config, path: str, layers: int | None) -> ModelSettings:
    m = config.model
    return ModelSettings(
        path=path,
        dtype=m.dtype,
        attention=m.attention,
        trust_remote_code=m.trust_remote_code,
        gradient_checkpointing=m.gradient_checkpointing,
        layers=layers,
    )


def _zero(zero: Zero) -> ZeroSettings:
    return ZeroSettings(**zero.model_dump())


def _optimizer(optimizer: Optimizer, total_steps: int) -> OptimizerSettings:
    return OptimizerSettings(**optimizer.model_dump(), total_steps=total_steps)


def _given(**fields: bool | None) -> dict[str, bool]:
    """Only the fields that were set."""
    return {name: value for name, value in fields.items() if value is not None}
