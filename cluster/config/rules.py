"""Rules that need two sections at once. Each returns the problems it finds; none changes anything.

In: a Config whose sections are each valid. Out: Problems, all of them. Left out: what needs the model's files, the
data or the machine (commands/check.py).
"""

from __future__ import annotations

from collections.abc import Iterator

from cluster.config.problem import Problem
from cluster.config.schema import Config


def cross_section_problems(config: Config) -> list[Problem]:
    rules = (_data, _algorithm, _sampling, _learner, _evaluation)
    return [problem for rule in rules for problem in rule(config)]


def _data(config: Config) -> Iterator[Problem]:
    data = config.data
    if (data.path is None) == (data.reasoning_gym is None):
        have = "neither" if data.path is None else "both"
        yield Problem("data", f"needs exactly one of data.path and data.reasoning_gym, got {have}")
    if data.messages_column is not None and data.reasoning_gym is not None:
        yield Problem("data.messages_column", "reasoning_gym tasks have questions, not messages; remove it")


def _algorithm(config: Config) -> Iterator[Problem]:
    name, a = config.algorithm.name, config.algorithm
    samples = config.rollout.sampling.samples_per_prompt
    if name == "dpo":
        yield from _dpo(config)
        return
    if a.preference is not None:
        yield Problem("algorithm.preference", f"{name} learns from rewards and has no use for it; remove it")
    if not config.reward.functions and not config.reward.models:
        yield Problem("reward", f"{name} needs a reward: add reward.functions or reward.models")
    advantage = a.advantage or {"ppo": "gae", "grpo": "grpo"}[name]
    if advantage == "gae" and config.critic is None:
        yield Problem("critic", "GAE needs values: add a critic section (critic: {}), or choose a group advantage")
    if advantage != "gae" and config.critic is not None:
        yield Problem("critic", f"the {advantage} advantage has no use for a critic; remove the section")
    if advantage != "gae" and samples < 2:
        yield Problem(
            "rollout.sampling.samples_per_prompt",
            f"the {advantage} advantage compares samples of one prompt: give at least 2, got {samples}",
        )
    if a.kl.target is not None and a.kl.place == "none":
        yield Problem("algorithm.kl.target", "there is no KL to hold at a target; set algorithm.kl.place or remove it")
    if a.correction.kind == "icepop" and a.correction.floor >= a.correction.cap:
        yield Problem(
            "algorithm.correction.floor",
            f"must lie below algorithm.correction.cap, got {a.correction.floor} and {a.correction.cap}",
        )


def _dpo(config: Config) -> Iterator[Problem]:
    if config.reward.functions or config.reward.models:
        yield Problem("reward", "dpo learns from pairs and has no use for a reward; remove the section")
    if config.critic is not None:
        yield Problem("critic", "dpo has no use for a critic; remove the section")
    if config.algorithm.preference is None:
        yield Problem("algorithm.preference", "dpo needs it: preference: {loss: sigmoid, beta: 0.1}")


def _sampling(config: Config) -> Iterator[Problem]:
    sampling = config.rollout.sampling
    if config.algorithm.name == "dpo":
        return
    if sampling.max_tokens >= config.model.max_length:
        yield Problem(
            "rollout.sampling.max_tokens",
            f"leaves no room for a prompt in model.max_length ({config.model.max_length}), got {sampling.max_tokens}",
        )
    if sampling.min_tokens > sampling.max_tokens:
        yield Problem(
            "rollout.sampling.min_tokens", f"exceeds max_tokens ({sampling.max_tokens}), got {sampling.min_tokens}"
        )
    cut = [f"top_p {sampling.top_p:g}"] if sampling.top_p < 1.0 else []
    cut += [f"top_k {sampling.top_k}"] if sampling.top_k > 0 else []
    if cut and config.algorithm.correction.kind == "none":
        yield Problem(
            "rollout.sampling",
            f"{' and '.join(cut)} renormalise over tokens that the learner cannot see, so its log-probs would be of "
            "another distribution; use top_p 1 and top_k 0, or set algorithm.correction.kind",
        )


def _learner(config: Config) -> Iterator[Problem]:
    learner = config.learner
    groups = config.rollout.prompts_per_step
    if config.algorithm.name != "dpo" and learner.minibatches > groups:
        yield Problem(
            "learner.minibatches", f"must be at most rollout.prompts_per_step ({groups}), got {learner.minibatches}"
        )
    if learner.backend == "torch" and (learner.ranks > 1 or learner.zero.stage > 0):
        yield Problem("learner.backend", "torch is the plain twin for one rank without ZeRO; use deepspeed")
    sections = [("learner.zero", learner.zero)]
    if config.critic is not None:
        sections.append(("critic.zero", config.critic.zero))
    for path, zero in sections:
        if zero.offload_parameters != "none" and zero.stage != 3:
            yield Problem(f"{path}.offload_parameters", f"needs stage 3, got stage {zero.stage}")
        if zero.offload_optimizer != "none" and zero.stage == 0:
            yield Problem(f"{path}.offload_optimizer", "needs stage 1, 2 or 3, got stage 0")
        if "nvme" in (zero.offload_optimizer, zero.offload_parameters) and zero.nvme_path is None:
            yield Problem(f"{path}.nvme_path", "offloading to nvme needs a path")


def _evaluation(config: Config) -> Iterator[Problem]:
    e = config.evaluation
    if config.data.heldout == 0 and e.every_steps > 0:
        yield Problem("evaluation.every_steps", "needs held-out prompts: set data.heldout")
    if e.patience is not None and e.every_steps == 0:
        yield Problem("evaluation.patience", "counts evaluations: set evaluation.every_steps")
    known = {"reward", *config.reward.functions, *config.reward.models}
    if config.algorithm.name != "dpo" and e.metric not in known:
        yield Problem("evaluation.metric", f"must be one of {', '.join(sorted(known))}, got {e.metric!r}")
