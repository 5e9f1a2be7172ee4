"""Rules of `rollout.sampling`: lengths and stops that contradict each other, and what shapes the sampled distribution.

In: a Config of a method that makes its own samples. Out: Problems. Left out: the draw itself
(actors/engines/sampling.py) and how a learner follows it (actors/models/forward.py).

One rule for whatever changes the probabilities that tokens are drawn with: the learner's log-probs must be of the same
distribution, or importance correction must weigh the difference, or it is refused. A setting that is in none of the
three tables below has not been thought about, and a test fails.
"""

from __future__ import annotations

from collections.abc import Iterator

from cluster.config.problem import Problem
from cluster.config.resolve import correction_kind
from cluster.config.schema import Config
from learners.methods.presets import PRESETS

FOLLOWED = ("temperature", "min_tokens")
"""Policy and reference do the same to their logits: divide them, bar the end tokens of a response's first tokens."""
CORRECTED: dict[str, float] = {"top_p": 1.0, "top_k": 0}
"""Renormalise over a kept set that no learner can see: refused unless importance correction is on. With the value at
which everything is kept."""
SHAPELESS = ("max_tokens", "stop", "samples_per_prompt", "seed")
"""End responses, count or seed them: each token's distribution stays."""


def sampling_problems(config: Config) -> Iterator[Problem]:
    path, sampling = "rollout.sampling", config.rollout.sampling
    if sampling.max_tokens >= config.model.max_length:
        yield Problem(
            f"{path}.max_tokens",
            f"leaves no room for a prompt in model.max_length ({config.model.max_length}), got {sampling.max_tokens}",
        )
    if sampling.min_tokens > sampling.max_tokens:
        yield Problem(
            f"{path}.min_tokens", f"must be at most max_tokens ({sampling.max_tokens}), got {sampling.min_tokens}"
        )
    if sampling.stop and sampling.min_tokens == sampling.max_tokens:
        yield Problem(
            f"{path}.stop",
            f"min_tokens equals max_tokens ({sampling.max_tokens}), so no stop string acts; lower min_tokens",
        )
    if "" in sampling.stop:
        yield Problem(f"{path}.stop", "an empty stop string would end every response at once; remove it")
    given = {name: getattr(sampling, name) for name in CORRECTED}
    cut = [f"{name} {value:g}" for name, value in given.items() if value != CORRECTED[name]]
    if cut and correction_kind(config) == "none":
        whole = " and ".join(f"{name} {value:g}" for name, value in CORRECTED.items())
        instead = ", or set algorithm.correction.kind" if config.algorithm.name in PRESETS else ""
        yield Problem(
            path,
            f"{' and '.join(cut)} renormalise over tokens that the learner cannot see, so its log-probs would be of "
            f"another distribution; use {whole}{instead}",
        )
