"""Rules of methods that learn from stored pairs: what generates, scores or weighs rewards would be ignored there.

In: a Config whose algorithm is a preference method. Out: Problems, all of them. Left out: rules of the online methods
and of sections that every method has (rules.py).
"""

from __future__ import annotations

from collections.abc import Iterator

from cluster.config.problem import Problem
from cluster.config.schema import Algorithm, Config, Evaluation, Learner, Reward, Rollout

SMOOTHED_LOSSES = ("sigmoid", "robust")


def preference_problems(config: Config) -> Iterator[Problem]:
    """What a config of a preference method holds or lacks."""
    for key, default in (("reward", Reward()), ("rollout", Rollout()), ("critic", None)):
        if getattr(config, key) != default:
            yield Problem(key, f"dpo learns from stored pairs and has no use for a {key}; remove the section")
    unused = ("advantage", "gamma", "gae_lambda", "clip_low", "clip_high", "dual_clip", "kl", "entropy_coef")
    for key in (*unused, "aggregation", "correction"):
        if getattr(config.algorithm, key) != _default(Algorithm, key):
            yield Problem(f"algorithm.{key}", "is of policy-gradient methods, dpo has no use for it; remove it")
    for key, instead in (
        ("epochs", "algorithm.preference.epochs"),
        ("minibatches", "algorithm.preference.pairs_per_step"),
    ):
        if getattr(config.learner, key) != _default(Learner, key):
            yield Problem(
                f"learner.{key}", f"dpo takes {instead} instead, got {getattr(config.learner, key)}; remove it"
            )
    for key in ("temperature", "max_tokens", "metric", "kl_bound"):
        if getattr(config.evaluation, key) != _default(Evaluation, key):
            yield Problem(f"evaluation.{key}", "dpo is evaluated on held-out pairs and generates nothing; remove it")
    if config.data.suffix:
        yield Problem("data.suffix", "dpo takes prompts as they stand in the pairs; put it into the data and remove it")
    task = config.data.reasoning_gym
    if task is not None and config.data.heldout >= task.size:
        yield Problem(
            "data.heldout", f"must be less than data.reasoning_gym.size ({task.size}), got {config.data.heldout}"
        )
    preference = config.algorithm.preference
    if preference is None:
        yield Problem("algorithm.preference", "dpo needs it: preference: {loss: sigmoid, beta: 0.1}")
    elif preference.label_smoothing > 0 and preference.loss not in SMOOTHED_LOSSES:
        yield Problem(
            "algorithm.preference.label_smoothing",
            f"acts in {' and '.join(SMOOTHED_LOSSES)} only, not in {preference.loss}, got "
            f"{preference.label_smoothing:g}; remove it",
        )


def _default(section: type, key: str) -> object:
    return section.model_fields[key].default
