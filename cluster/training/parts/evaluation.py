"""Held-out prompts through a pool and scorers: what `raylign eval` and the training loops share.

In: a rollout pool, scorers, prompts. Out: score arrays by reward name, in the prompts' order. Left out: intervals
(cluster/run/records/evaluation.py), when to evaluate (the loops).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from actors.models.pretrained import resolve_model
from actors.rewards import RewardSpec
from actors.types import Prompt, SamplingSettings, ScoreBatch
from cluster.config import Config
from cluster.config.sections.reward import Judge
from cluster.inputs.online import OnlineInputs
from cluster.pool.pool import RolloutPool
from cluster.roles.scorer import JudgeSpec, RewardModelSpec, ScorerSpec
from cluster.workers import ScorerPool

HELDOUT_GROUP = 1 << 40
"""Held-out prompts' groups start here: apart from every position of the training order."""


def heldout_prompts(inputs: OnlineInputs) -> list[Prompt]:
    """The held-out prompts, in a fixed order."""
    if inputs.heldout is None:
        return []
    return inputs.heldout.prompts((row, HELDOUT_GROUP + row) for row in range(len(inputs.heldout)))


def heldout_scores(
    pool: RolloutPool, scorers: ScorerPool, prompts: Sequence[Prompt], sampling: SamplingSettings, version: int
) -> tuple[dict[str, np.ndarray], str | None]:
    """One response per prompt, scored: "reward" is the weighted sum, the rest its parts. NaN: no score; and a sentence
    on how many lack one, None if none does."""
    samples = pool.generate(prompts, sampling, version)
    pairs = scorers.score(samples)
    scores = ScoreBatch.concat(scorers.wait([scores for scores, _ in pairs]))
    order = np.argsort(np.array(samples.groups))
    found = {"reward": scores.values[order], **{name: part[order] for name, part in scores.parts.items()}}
    lacking = {name: int(np.isnan(values).sum()) for name, values in found.items()}
    failed = ", ".join(f"{count} have no {name}" for name, count in lacking.items() if count)
    if not failed:
        return found, None
    why = next(iter(scores.errors.values()), "no reason given")
    return found, f"of {len(prompts)} held-out prompts {failed}; the first: {why}"


def scorer_spec(config: Config, tokenizer_path: Path, functions: Sequence[Any], base: Path) -> ScorerSpec:
    """What each scorer is told; `base` is the folder that reward files are named from. Costs are parts of weight 0:
    the driver makes their sum."""
    reward, safety = config.reward, config.reward.safety
    limit = None if reward.memory_limit_gb is None else int(reward.memory_limit_gb * (1 << 30))
    models = [(name, model, model.weight) for name, model in reward.models.items()]
    models += [(name, model, 0.0) for name, model in (safety.models if safety else {}).items()]
    return ScorerSpec(
        functions=tuple(functions),
        models=tuple(RewardModelSpec(n, str(resolve_model(m.path)), weight, m.max_length) for n, m, weight in models),
        judges=tuple(judge_spec(name, judge) for name, judge in reward.judges.items()),
        tokenizer_path=str(tokenizer_path),
        missing_eos_penalty=reward.missing_eos_penalty,
        memory_limit_bytes=limit,
        base=str(base),
        device="cpu",
    )


def judge_spec(name: str, judge: Judge) -> JudgeSpec:
    function = None
    if judge.function is not None:
        function = RewardSpec(name=name, function=judge.function, timeout_s=judge.timeout_s, args=judge.args)
    return JudgeSpec(
        name=name,
        path=None if judge.path is None else str(resolve_model(judge.path)),
        function=function,
        weight=judge.weight,
        template=judge.template,
        max_length=judge.max_length,
    )
