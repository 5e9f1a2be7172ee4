"""Rules of the `reward` section: names, weights, judges, what a constraint needs.

In: a Config of a method that scores its own samples. Out: Problems. Left out: loading functions and models (inspect/).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from string import Formatter

from cluster.config.problem import Problem
from cluster.config.schema import Config
from cluster.config.sections.reward import Judge, Safety

RESERVED_REWARD_NAMES = ("mean", "std", "failed", "missing_eos", "reward")
"""Names that metrics and evaluations use themselves."""
JUDGED = ("prompt", "first", "second")
"""What a judge's template is filled with."""


def reward_problems(config: Config) -> Iterator[Problem]:
    reward, name = config.reward, config.algorithm.name
    parts = {f"reward.{kind}": getattr(reward, kind) for kind in ("functions", "models", "judges")}
    if not any(parts.values()):
        yield Problem("reward", f"{name} needs a reward: add reward.functions, reward.models or reward.judges")
        return
    if config.reward.safety is not None:
        parts |= {f"reward.safety.{kind}": getattr(config.reward.safety, kind) for kind in ("functions", "models")}
        yield from _safety(config.reward.safety)
    yield from _names(parts)
    weights = [
        part.weight for path, named in parts.items() if not path.startswith("reward.safety") for part in named.values()
    ]
    if all(weight == 0 for weight in weights):
        yield Problem("reward", "every weight is 0, so all samples score the same; give one a weight")
    for part, judge in reward.judges.items():
        yield from _judge(f"reward.judges.{part}", judge)
        if config.rollout.sampling.samples_per_prompt < 2:
            yield Problem(
                f"reward.judges.{part}",
                "a judge compares samples of one prompt: set rollout.sampling.samples_per_prompt to at least 2",
            )


def _names(parts: dict[str, dict]) -> Iterator[Problem]:
    seen: Counter[str] = Counter()
    kinds = {"reward.functions": "reward function", "reward.models": "reward model", "reward.judges": "judge"}
    owner: dict[str, str] = {}
    for section, named in parts.items():
        for part in named:
            path = f"{section}.{part}"
            if part in RESERVED_REWARD_NAMES:
                yield Problem(path, f"the name stands for a metric of its own ({', '.join(RESERVED_REWARD_NAMES)} do)")
            if "/" in part:
                yield Problem(path, "a reward's name is part of a metric's name and has no slash; rename it")
            if seen[part]:
                yield Problem(path, f"a {owner[part]} has this name too; rename one")
            seen[part] += 1
            owner.setdefault(part, kinds.get(section, "cost"))


def _safety(safety: Safety) -> Iterator[Problem]:
    if not safety.functions and not safety.models:
        yield Problem("reward.safety", "a constraint needs a cost: add functions or models to it")
    if safety.multiplier > safety.max_multiplier:
        yield Problem(
            "reward.safety.multiplier",
            f"must be at most max_multiplier ({safety.max_multiplier:g}), got {safety.multiplier:g}",
        )
    for kind in ("functions", "models"):
        for name, part in getattr(safety, kind).items():
            if part.weight == 0:
                yield Problem(
                    f"reward.safety.{kind}.{name}.weight", "a cost of weight 0 bounds nothing; give it a weight"
                )


def _judge(path: str, judge: Judge) -> Iterator[Problem]:
    if (judge.path is None) == (judge.function is None):
        have = "neither" if judge.path is None else "both"
        yield Problem(path, f"needs exactly one of path and function, got {have}")
    if judge.function is not None and judge.template is not None:
        yield Problem(f"{path}.template", "is what a model is asked, a function asks by itself; remove it")
    if judge.template is not None:
        yield from _template(f"{path}.template", judge.template)


def _template(path: str, template: str) -> Iterator[Problem]:
    try:
        slots = {slot for _, slot, _, _ in Formatter().parse(template) if slot is not None}
    except ValueError as error:
        yield Problem(path, f"its braces do not pair ({error}); write {{{{ and }}}} for braces of the text itself")
        return
    if other := sorted(slots - set(JUDGED)):
        named = ", ".join(f"{{{slot}}}" for slot in other)
        yield Problem(path, f"nothing fills {named}; write {{{{ and }}}} for braces of the text itself")
    if lacking := [f"{{{slot}}}" for slot in JUDGED if slot not in slots]:
        yield Problem(path, f"the judge must see {', '.join(lacking)}; add them")
