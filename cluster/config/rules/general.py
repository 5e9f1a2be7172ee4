"""Rules that need two sections at once. Each returns the problems it finds; none changes anything.

In: a Config whose sections are each valid. Out: Problems, all of them: a key that would be ignored is one too. Left
out: what needs the model's files, the data or the machine (cluster/commands/check.py).
"""

from __future__ import annotations

from collections.abc import Iterator

from cluster.config.problem import Problem
from cluster.config.resolve import optimizer_steps, resolve_preset
from cluster.config.rules.lora import lora_problems
from cluster.config.rules.method import method_problems
from cluster.config.rules.offline import offline_problems, online_pair_problems
from cluster.config.rules.recovery import recovery_problems
from cluster.config.rules.reward import reward_problems
from cluster.config.rules.rollout import rollout_problems
from cluster.config.rules.sampling import sampling_problems
from cluster.config.rules.schedule import schedule_problems
from cluster.config.schema import Config
from cluster.config.sections.algorithm import Resample
from cluster.config.sections.data import Data, ReasoningGym
from cluster.config.sections.optimizer import Optimizer, Zero
from cluster.config.sections.section import Section
from cluster.config.transport import transport_problems
from learners.methods.presets import GROUP_ADVANTAGES, TOKEN_ADVANTAGES


def cross_section_problems(config: Config) -> list[Problem]:
    policy_gradient = (_advantage, _loss, _kl, _correction)
    kind = (online_pair_problems,) if config.algorithm.name == "online_dpo" else policy_gradient
    own = (
        (
            reward_problems,
            *kind,
            sampling_problems,
            rollout_problems,
            schedule_problems,
            transport_problems,
            _minibatches,
        )
        if config.algorithm.online
        else (offline_problems,)
    )
    rules = (method_problems, _model, lora_problems, _data, *own, _learner, _evaluation, recovery_problems, _ray)
    return [problem for rule in rules for problem in rule(config)]


def _model(config: Config) -> Iterator[Problem]:
    if config.model.attention == "eager":
        yield Problem("model.attention", "packed samples need sdpa's boolean mask, got eager; set it to sdpa")


def _data(config: Config) -> Iterator[Problem]:
    data = config.data
    if (data.path is None) == (data.reasoning_gym is None):
        have = "neither" if data.path is None else "both"
        yield Problem("data", f"needs exactly one of data.path and data.reasoning_gym, got {have}")
    if data.subset is not None and data.path is None:
        yield Problem("data.subset", "is of a hub data set, this is a task; remove it")
    if data.messages_column is not None and data.prompt_column != _default(Data, "prompt_column"):
        yield Problem(
            "data.prompt_column", f"data.messages_column is read instead, got {data.prompt_column!r}; remove one"
        )
    if data.reasoning_gym is None:
        return
    yield from _said(config, data.reasoning_gym)
    if data.messages_column is not None:
        yield Problem("data.messages_column", "reasoning_gym tasks have questions, not messages; remove it")
    for key in ("prompt_column", "completion_column", "split"):
        if getattr(data, key) != _default(Data, key):
            yield Problem(
                f"data.{key}", f"reasoning_gym tasks are generated and have none, got {getattr(data, key)!r}; remove it"
            )


def _said(config: Config, task: ReasoningGym) -> Iterator[Problem]:
    for name, said in (("answer_format", task.answer_format), ("rejected_format", task.rejected_format)):
        if said is None:
            continue
        key, formats = f"data.reasoning_gym.{name}", said if isinstance(said, list) else [said]
        if config.algorithm.online:
            yield Problem(key, "the policy answers by itself, nothing is said for it; remove it")
        elif name == "rejected_format" and config.row_kind != "pairs":
            yield Problem(key, f"{config.algorithm.name} has no rejected side here; remove it")
        yield from (Problem(key, f"must hold {{answer}}, got {f!r}") for f in formats if "{answer}" not in f)
        if not formats:
            yield Problem(key, "is an empty list; give a format or remove it")
        elif name == "rejected_format" and said in (task.answer_format, *(task.answer_format or ())):
            yield Problem(key, f"is how the chosen side says it too, got {said!r}; change one")


def _advantage(config: Config) -> Iterator[Problem]:
    a = config.algorithm
    samples = config.rollout.sampling.samples_per_prompt
    advantage = resolve_preset(config).advantage
    if advantage == "gae" and config.critic is None:
        yield Problem("critic", "GAE needs values: add a critic section (critic: {}), or choose a group advantage")
    if advantage != "gae" and config.critic is not None:
        yield Problem("critic", f"the {advantage} advantage has no use for a critic; remove the section")
    if advantage in GROUP_ADVANTAGES and samples < 2:
        yield Problem(
            "rollout.sampling.samples_per_prompt",
            f"the {advantage} advantage compares samples of one prompt: give at least 2, got {samples}",
        )
    for key, users in (("gamma", TOKEN_ADVANTAGES), ("gae_lambda", ("gae",))):
        if getattr(a, key) != 1.0 and advantage not in users:
            yield Problem(
                f"algorithm.{key}",
                f"acts in {' and '.join(users)} only, not in the {advantage} advantage, got {getattr(a, key):g}; "
                "remove it",
            )


def _loss(config: Config) -> Iterator[Problem]:
    loss, resample, preset = config.algorithm.loss, config.algorithm.resample, resolve_preset(config)
    if preset.loss.kind == "cispo":
        if preset.loss.ratio != "token":
            yield Problem("algorithm.loss.ratio", f"cispo weighs each token by its own, got {loss.ratio}; remove it")
        if loss.dual_clip is not None:
            yield Problem("algorithm.loss.dual_clip", f"acts in the clip loss only, got {loss.dual_clip:g}; remove it")
    if preset.resample_flat_groups and config.rollout.sampling.samples_per_prompt < 2:
        yield Problem("algorithm.resample.flat_groups", "a group of one is always flat; set samples_per_prompt above 1")
    if not preset.resample_flat_groups and resample.rounds != _default(Resample, "rounds"):
        yield Problem("algorithm.resample.rounds", f"acts with flat_groups only, got {resample.rounds}; remove it")


def _kl(config: Config) -> Iterator[Problem]:
    kl, preset = config.algorithm.kl, resolve_preset(config)
    takes_kl = preset.score_includes_kl or preset.advantage in TOKEN_ADVANTAGES
    if preset.kl_place == "reward" and not takes_kl:
        own = "" if kl.place == "reward" else f" ({config.algorithm.name}'s own)"
        yield Problem(
            "algorithm.kl.place",
            f"the {preset.advantage} advantage takes scores without the token KL, got reward{own}; use loss or none",
        )
    if preset.kl_place == "none":
        for key in ("kind", "coef", "target"):
            if getattr(kl, key) not in (None, 0.0):
                yield Problem(
                    f"algorithm.kl.{key}",
                    f"there is no KL for it to act on, got {getattr(kl, key)}; set algorithm.kl.place or remove it",
                )
    elif preset.kl_place == "loss" and kl.target is not None:
        own = "" if kl.place == "loss" else f" ({config.algorithm.name}'s own place)"
        yield Problem(
            "algorithm.kl.target",
            f"the adaptive controller moves the coefficient of a KL in the reward, not in the loss{own}, got "
            f"{kl.target:g}; set algorithm.kl.place to reward where the method takes it, or remove it",
        )
    elif preset.kl_coef == 0.0 and config.evaluation.kl_bound is None:
        yield Problem(
            "algorithm.kl.coef",
            "0 has a reference computed whose KL changes nothing; set algorithm.kl.place to none, or a coefficient "
            "above 0, got 0",
        )
    elif preset.kl_coef == 0.0 and kl.target is not None:
        yield Problem(
            "algorithm.kl.coef",
            "the adaptive controller multiplies it, so it must start above 0 to reach a target, got 0",
        )


def _correction(config: Config) -> Iterator[Problem]:
    correction = config.algorithm.correction
    if correction.kind == "icepop" and correction.floor >= correction.cap:
        yield Problem(
            "algorithm.correction.floor",
            f"must lie below algorithm.correction.cap ({correction.cap:g}), got {correction.floor:g}",
        )


def _minibatches(config: Config) -> Iterator[Problem]:
    groups, cuts = config.rollout.prompts_per_step, config.learner.minibatches
    if cuts > groups:
        yield Problem("learner.minibatches", f"must be at most rollout.prompts_per_step ({groups}), got {cuts}")


def _learner(config: Config) -> Iterator[Problem]:
    learner, critic = config.learner, config.critic
    zeros = [("learner.zero", learner.zero), *([("critic.zero", critic.zero)] if critic else [])]
    if learner.backend == "torch" and (learner.ranks > 1 or any(zero.stage > 0 for _, zero in zeros)):
        yield Problem("learner.backend", "torch is the plain twin for one rank without ZeRO; use deepspeed")
    if learner.gpus_per_rank is not None and learner.gpus_per_rank > 1:
        yield Problem(
            "learner.gpus_per_rank",
            f"a rank runs on one GPU or a part of it: give at most 1, got {learner.gpus_per_rank:g}; add learner.ranks",
        )
    for path, zero in zeros:
        yield from _zero(path, zero)
    if learner.optimizer.head_lr is not None and config.algorithm.name != "reward_model":
        yield Problem("learner.optimizer.head_lr", "a policy has no such head; set critic.optimizer.head_lr")
    steps = optimizer_steps(config, config.steps)
    yield from _schedule("learner.optimizer", learner.optimizer, steps)
    if critic is not None:
        yield from _schedule("critic.optimizer", critic.optimizer, steps)


def _zero(path: str, zero: Zero) -> Iterator[Problem]:
    for key in ("offload_optimizer", "offload_parameters"):
        if getattr(zero, key) == "nvme":
            yield Problem(f"{path}.{key}", "the learner keeps its state in memory: use cpu or none, got nvme")
    if zero.offload_parameters != "none" and zero.stage != 3:
        yield Problem(f"{path}.offload_parameters", f"needs stage 3, got stage {zero.stage}")
    if zero.offload_optimizer != "none" and zero.stage == 0:
        yield Problem(f"{path}.offload_optimizer", "needs stage 1, 2 or 3, got stage 0")


def _schedule(path: str, optimizer: Optimizer, steps: int) -> Iterator[Problem]:
    frozen, warmup = optimizer.freeze_steps, optimizer.warmup_steps
    if frozen >= steps:
        yield Problem(
            f"{path}.freeze_steps",
            f"must be less than the run's {steps} optimiser steps, or nothing is learned, got {frozen}",
        )
    elif warmup and frozen + warmup >= steps:
        yield Problem(
            f"{path}.warmup_steps",
            f"must end before the run's {steps} optimiser steps do (freeze_steps {frozen} come first), got {warmup}",
        )


def _evaluation(config: Config) -> Iterator[Problem]:
    e, heldout = config.evaluation, config.data.heldout
    if heldout == 0 and e.every_steps > 0:
        yield Problem("evaluation.every_steps", f"needs held-out prompts, got {e.every_steps}: set data.heldout")
    if e.prompts is not None and e.prompts > heldout:
        yield Problem("evaluation.prompts", f"must be at most data.heldout ({heldout}), got {e.prompts}")
    if e.patience is not None and e.every_steps == 0:
        yield Problem("evaluation.patience", f"counts evaluations, got {e.patience}: set evaluation.every_steps")
    if not config.algorithm.online:
        return
    known = {"reward", *config.reward.functions, *config.reward.models}
    known |= {*config.reward.safety.functions, *config.reward.safety.models} if config.reward.safety else set()
    if e.metric not in known:
        yield Problem("evaluation.metric", f"must be one of {', '.join(sorted(known))}, got {e.metric!r}")
    if e.max_tokens is not None and e.max_tokens >= config.model.max_length:
        yield Problem(
            "evaluation.max_tokens",
            f"leaves no room for a prompt in model.max_length ({config.model.max_length}), got {e.max_tokens}",
        )
    if e.kl_bound is not None and (config.algorithm.name == "online_dpo" or resolve_preset(config).kl_place == "none"):
        yield Problem(
            "evaluation.kl_bound",
            f"there is no reference to measure kl/ref against, got {e.kl_bound:g}; set algorithm.kl.place or remove it",
        )


def _ray(config: Config) -> Iterator[Problem]:
    address = config.ray.address
    if address not in ("local", "auto") and ":" not in address:
        yield Problem("ray.address", f"must be local, auto or host:port, got {address!r}")
    if config.ray.on_demand and address == "local":
        yield Problem(
            "ray.on_demand",
            f"a Ray started here has no autoscaler; set ray.address or remove it, got {config.ray.on_demand}",
        )
    if config.ray.num_cpus is not None and address != "local":
        yield Problem(
            "ray.num_cpus", f"is for a Ray started here, ray.address is {address}, got {config.ray.num_cpus}; remove it"
        )


def _default(section: type[Section], key: str) -> object:
    return section.model_fields[key].default
