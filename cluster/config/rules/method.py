"""Which part of a config is whose: a section or key that the method has no use for is a problem.

In: a Config. Out: Problems. Left out: what the values must be (general.py, offline.py).
"""

from __future__ import annotations

from collections.abc import Iterator

from cluster.config.problem import Problem
from cluster.config.schema import Config
from cluster.config.sections.algorithm import Algorithm
from cluster.config.sections.data import Data
from learners.methods.presets import PREFERENCE_PRESETS, PRESETS

PREFERENCE_METHODS = tuple(PREFERENCE_PRESETS)
POLICY_GRADIENT_KEYS = ("advantage", "whiten", "gamma", "gae_lambda", "loss", "kl", "correction", "resample")
USERS = {
    **{key: ("policy-gradient methods", tuple(PRESETS)) for key in POLICY_GRADIENT_KEYS},
    "preference": ("methods that compare responses", PREFERENCE_METHODS),
    "sft": ("sft", ("sft",)),
    "reward_model": ("reward_model", ("reward_model",)),
}
"""Keys of `algorithm`: whose they are, in words and by name."""


def method_problems(config: Config) -> Iterator[Problem]:
    """What the config holds for another method than its own."""
    name = config.algorithm.name
    for key, (whose, users) in USERS.items():
        if name not in users and getattr(config.algorithm, key) != Algorithm.model_fields[key].default:
            yield Problem(f"algorithm.{key}", f"is of {whose}, {name} has no use for it; remove it")
    data = config.data
    read = config.row_kind == "responses" or (config.row_kind == "conversations" and data.messages_column is None)
    if not read and data.completion_column != Data.model_fields["completion_column"].default:
        yield Problem(
            "data.completion_column",
            f"is of sft's rows without messages and of judged responses, got {data.completion_column!r}; remove it",
        )
    if config.algorithm.online and data.labels != Data.model_fields["labels"].default:
        yield Problem("data.labels", f"{name} scores its own samples and reads no judgement; remove it")
