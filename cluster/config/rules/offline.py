"""Rules of the methods that learn from stored rows, and from pairs of their own samples.

In: a Config of such a method. Out: Problems: what it has no use for, and what its loss needs. Left out: rules of the
policy-gradient methods and of sections that every method has (general.py).
"""

from __future__ import annotations

from collections.abc import Iterator

from cluster.config.problem import Problem
from cluster.config.resolve import preference_settings
from cluster.config.schema import Config, Evaluation, Learner, Reward, Rollout
from cluster.config.sections.algorithm import RewardModelling
from cluster.config.sections.section import Section
from learners.methods.presets import PREFERENCE_FIELDS


def offline_problems(config: Config) -> Iterator[Problem]:
    """What a config of a method on stored rows holds or lacks."""
    name = config.algorithm.name
    rows = config.row_kind
    for key, default in (("reward", Reward()), ("rollout", Rollout()), ("critic", None)):
        if getattr(config, key) != default:
            yield Problem(key, f"{name} learns from stored {rows} and has no use for a {key}; remove the section")
    size = f"algorithm.{name}.rows_per_step"
    if config.algorithm.on_preferences:
        size = "algorithm.preference.pairs_per_step"
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
    yield from _label_problems(config)
    if config.algorithm.on_preferences:
        yield from _loss_problems(config)
    elif name == "reward_model":
        yield from _reward_model_problems(config)
    elif config.data.overlong == "truncate_left":
        yield Problem(
            "data.overlong", "a conversation cut at its beginning is another one: use refuse or drop, got truncate_left"
        )


def online_pair_problems(config: Config) -> Iterator[Problem]:
    """Online DPO: pairs are made of a prompt's own samples, one optimiser step a batch."""
    name, samples = config.algorithm.name, config.rollout.sampling.samples_per_prompt
    if config.critic is not None:
        yield Problem("critic", f"{name} compares samples and has no use for a critic; remove the section")
    if samples < 2:
        yield Problem(
            "rollout.sampling.samples_per_prompt",
            f"the best of a prompt's samples is set against the worst: give at least 2, got {samples}",
        )
    for key in ("epochs", "minibatches"):
        if getattr(config.learner, key) != _default(Learner, key):
            yield Problem(
                f"learner.{key}",
                f"{name} takes one optimiser step a batch, got {getattr(config.learner, key)}; remove it",
            )
    if preference_settings(config).loss == "kto":
        yield Problem("algorithm.preference.loss", "kto needs other prompts' responses; choose a loss on pairs")
    yield from _loss_problems(config)


def _label_problems(config: Config) -> Iterator[Problem]:
    """What people said of responses, where the method or its rows have no place for it."""
    name, labels = config.algorithm.name, config.data.labels
    ratings = name == "reward_model" and labels.column is not None
    if labels.column is not None and name not in ("kto", "reward_model"):
        yield Problem(
            "data.labels.column", f"single judged responses are for kto and reward_model, {name} cannot learn from them"
        )
    if labels.range is not None and not ratings:
        yield Problem("data.labels.range", "bounds ratings: only reward_model with data.labels.column has them")
    elif labels.range is not None and labels.range[0] >= labels.range[1]:
        low, high = labels.range
        yield Problem("data.labels.range", f"the least rating must be below the greatest, got {low:g} and {high:g}")
    if labels.margin_column is not None and (name != "reward_model" or ratings):
        yield Problem("data.labels.margin_column", "margins are for reward_model on pairs; remove it")


def _reward_model_problems(config: Config) -> Iterator[Problem]:
    given, default = config.algorithm.reward_model.centre_coef, RewardModelling.model_fields["centre_coef"].default
    if config.row_kind == "responses" and given != default:
        yield Problem(
            "algorithm.reward_model.centre_coef", f"acts on pairs, ratings fix the centre, got {given:g}; remove it"
        )


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
    if config.row_kind == "responses" and loss != "kto" and config.algorithm.name == "kto":
        yield Problem("algorithm.preference.loss", f"{loss} compares two responses; single judged ones need kto")


def _default(section: type[Section], key: str) -> object:
    return section.model_fields[key].default
