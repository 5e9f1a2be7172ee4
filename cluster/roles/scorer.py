"""A scorer: what runs inside its process. Knows nothing of Ray: `cluster/workers` wraps it in an actor.

In: samples and their prompts. Out: score columns and a short report. Left out: what a reward is (actors.rewards).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.rewards.spec import RewardSpec
from actors.types import Prompt, SampleBatch, ScoreBatch
from cluster.roles.stacks import tell_when_asked

if TYPE_CHECKING:
    from actors.rewards.judge import Judge


@dataclass(frozen=True, slots=True)
class RewardModelSpec:
    """One reward model of the weighted sum."""

    name: str
    path: str
    weight: float
    max_length: int


@dataclass(frozen=True, slots=True)
class JudgeSpec:
    """One judge of the weighted sum: a language model, or a function run out of process."""

    name: str
    path: str | None
    function: RewardSpec | None
    weight: float
    template: str | None
    max_length: int


@dataclass(frozen=True, slots=True)
class ScorerSpec:
    """What one scorer does; `base` is the folder that reward files are named from."""

    functions: tuple[RewardSpec, ...]
    models: tuple[RewardModelSpec, ...]
    judges: tuple[JudgeSpec, ...]
    tokenizer_path: str
    missing_eos_penalty: float
    memory_limit_bytes: int | None
    base: str
    device: str


class ScorerRole:
    """A scorer: reward functions in a process of their own, reward models in this one."""

    def __init__(self, spec: ScorerSpec) -> None:
        tell_when_asked()
        self._asked = threading.Event()
        from transformers import AutoTokenizer

        from actors.rewards.runner import RewardRunner
        from actors.rewards.scorer import Scorer, WeightedJudge

        runner = RewardRunner(spec.functions, base=Path(spec.base), memory_limit_bytes=spec.memory_limit_bytes)
        self.scorer = Scorer(
            AutoTokenizer.from_pretrained(spec.tokenizer_path),
            runner,
            models=[_reward_model(model, spec.device) for model in spec.models],
            judges=[WeightedJudge(judge.name, load_judge(judge, spec), judge.weight) for judge in spec.judges],
            missing_eos_penalty=spec.missing_eos_penalty,
        )

    def score(self, batch: SampleBatch, prompts: Sequence[Prompt]) -> tuple[ScoreBatch, ScoreReport]:
        began = time.monotonic()
        scores, stats = self.scorer.score(batch, {prompt.group: prompt for prompt in prompts})
        return scores, ScoreReport(stats.failed, tuple(stats.errors), time.monotonic() - began, os.getpid())

    def outlast(self) -> None:
        """Lasts as long as this process does, or until the next call of it: an earlier driver's must not stay. For a
        thread of its own."""
        before, self._asked = self._asked, threading.Event()
        mine = self._asked
        before.set()
        mine.wait()

    def close(self) -> None:
        self._asked.set()
        self.scorer.close()


@dataclass(frozen=True, slots=True)
class ScoreReport:
    """failed: samples without a score; errors: the first few reasons. process: its id, another after a restart."""

    failed: int
    errors: tuple[str, ...]
    seconds: float
    process: int = 0


def _reward_model(model: RewardModelSpec, device: str) -> Any:
    from actors.models.reward_model import RewardModel
    from actors.rewards.scorer import WeightedModel

    loaded = RewardModel(model.path, device=device, max_length=model.max_length)
    return WeightedModel(model.name, loaded, model.weight)


def load_judge(judge: JudgeSpec, spec: ScorerSpec) -> Judge:
    from actors.rewards.judge import TEMPLATE, FunctionJudge, ModelJudge
    from actors.rewards.runner import RewardRunner

    if judge.path is not None:
        template = judge.template or TEMPLATE
        return ModelJudge(judge.path, device=spec.device, template=template, max_length=judge.max_length)
    if judge.function is None:
        raise ValueError(f"judge {judge.name} has neither a model nor a function")
    runner = RewardRunner([judge.function], base=Path(spec.base), memory_limit_bytes=spec.memory_limit_bytes)
    return FunctionJudge(runner)
