"""Rules of the methods that learn from stored pairs: what their config has no use for, and what their loss needs.

In: a Config of such a method. Out: Problems. Left out: rules of the online methods and of sections that every method
has (rules.py).
"""

from __future__ import annotations

from collections.abc import Iterator

from cluster.config.algorithm import Algorithm
from cluster.config.problem import Problem
from cluster.config.resolve import preference_settings
from cluster.config.schema import Config, Evaluation, Learner, Reward, Rollout
from learners.presets import PREFERENCE_FIELDS


def offline_problems(config: Config) -> Iterator[Problem]:
    """What a config of a method on stored rows holds or lacks."""
    name = config.algorithm.name
    rows = "pairs" if config.algorithm.on_pairs else "conversations"
    for key, default in (("reward", Reward()), ("rollout", Rollout()), ("critic", None)):
        if getattr(config, key) != default:
            yield Problem(key, f"{name} learns from stored {rows} and has no use for a {key}; remove the section")
    for key in ("advantage", "whiten", "gamma", "gae_lambda", "loss", "kl", "correction", "resample"):
        if getattr(config.algorithm, key) != _default(Algorithm, key):
            yield Problem(f"algorithm.{key}", f"is of policy-gradient methods, {name} has no use for it; remove it")
    size = "algorithm.preference.pairs_per_step" if config.algorithm.on_pairs else "algorithm.sft.rows_per_step"
    for key, instead in (("epochs", "steps"), ("minibatches", size)):
        if getattr(config.learner, key) != _default(Learner, key):
            yield Problem(
                f"learner.{key}", f"{name} takes {instead} instead, got {getattr(config.learner, key)}; remove it"
            )
    for key in ("temperature", "max_tokens", "metric", "kl_bound"):
        if getattr(config.evaluation, key) != _default(Evaluation, key):
            yield Problem(
                f"evaluation.{key}", f"{name} is evaluated on held-out {rows} and generates nothing; remove it"
            )
    if config.data.suffix:
        yield Problem(
            "data.suffix", f"{name} takes prompts as they stand in the {rows}; put it into the data and remove it"
        )
    task = config.data.reasoning_gym
    if task is not None and config.data.heldout >= task.size:
        yield Problem(
            "data.heldout", f"must be less than data.reasoning_gym.size ({task.size}), got {config.data.heldout}"
        )
    yield from _loss_problems(config) if config.algorithm.on_pairs else _sft_problems(config)


def _loss_problems(config: Config) -> Iterator[Problem]:
    """Fields that the loss does not use; KTO's need of a second pair."""
    preference, loss = config.algorithm.preference, preference_settings(config).loss
    for key, users in PREFERENCE_FIELDS.items():
        if getattr(preference, key) is not None and loss not in users:
            yield Problem(
                f"algorithm.preference.{key}",
                f"acts in {' and '.join(users)} only, not in {loss}, got {getattr(preference, key):g}; remove it",
            )
    if loss == "kto" and preference.pairs_per_step < 2:
        yield Problem(
            "algorithm.preference.pairs_per_step",
            "kto compares with the other prompts' responses of a step: give at least 2, got 1",
        )


def _sft_problems(config: Config) -> Iterator[Problem]:
    if config.algorithm.preference != _default(Algorithm, "preference"):
        yield Problem("algorithm.preference", "sft learns from demonstrations and has no use for it; remove it")
    if config.data.overlong == "truncate_left":
        yield Problem(
            "data.overlong", "a conversation cut at its beginning is another one: use refuse or drop, got truncate_left"
        )


def _default(section: type, key: str) -> object:
    return section.model_fields[key].default
