"""What a pipeline's report says of one stage, gathered from its run directory.

In: a stage's name and run directory, the other stages' configs. Out: `StageView`. Left out: how it looks (templates),
the stage's own full page (page.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.config.schema import Config
from cluster.run.checkpoints import checkpoint
from cluster.run.checkpoints.state import DriverState
from cluster.run.directory import RunDirectory
from cluster.run.records.evaluation import difference_interval
from cluster.run.records.metrics import Interval, Row, read_events, read_metrics
from cluster.run.report import data
from cluster.run.stages import Finished


@dataclass(frozen=True, slots=True)
class Part:
    """One reward of a stage: what it is, its weight, how it moved on held-out prompts (None: not measured twice)."""

    name: str
    kind: str
    weight: float
    result: data.Result | None


@dataclass(frozen=True, slots=True)
class StageView:
    """state: done, begun or waiting. own: settings that are not every stage's. watch: a verdict on the reward model,
    good, bad or open, with its sentence; None without a reward model beside a rule."""

    name: str
    state: str
    config: Mapping[str, Any]
    rows: Sequence[Row]
    results: Sequence[data.Result]
    parts: Sequence[Part]
    watch: tuple[str, str] | None
    seconds: float | None
    done: Finished | None
    own: Sequence[tuple[str, str]]

    @property
    def steps(self) -> int:
        return int(self.rows[-1]["step"] or 0) if self.rows else 0


def view(name: str, run: RunDirectory, config: Mapping[str, Any], done: Finished | None, common: set[str]) -> StageView:
    """The stage as its files say. common: settings that all stages share."""
    begun = run.config_file.is_file()
    rows = read_metrics(run.metrics_file) if begun else []
    events = read_events(run.events_file) if begun else []
    results = results_of(rows, events, paired_gains(run, rows))
    parts = _parts(config, results)
    settings = flat({key: value for key, value in config.items() if key != "name"})
    own = [(key, text) for key, text in settings.items() if key not in common and text != DEFAULTS.get(key)]
    return StageView(
        name=name,
        state="done" if done else "begun" if begun else "waiting",
        config=config,
        rows=rows,
        results=results,
        parts=parts,
        watch=verdict(parts),
        seconds=data.wall_time_s(rows) if rows else None,
        done=done,
        own=own,
    )


def results_of(
    rows: Sequence[Row], events: Sequence[Mapping[str, Any]], paired: Mapping[str, Interval]
) -> list[data.Result]:
    """Before and after of every evaluation with intervals; the gain is of the paired difference where that is known."""
    found = []
    for name in data.eval_names(rows):
        short = name.removeprefix("eval/")
        gain = paired.get(short)
        told = [{"kind": "result", "gain": [gain.mean, gain.low, gain.high]}] if gain else []
        result = data.result_of(rows, told, short)
        if result is not None and result.metric == short:
            found.append(result)
    return found


def paired_gains(run: RunDirectory, rows: Sequence[Row]) -> dict[str, Interval]:
    """The paired gain of every evaluation, from the scores in the last commit, if that is of the last step."""
    steps = checkpoint.steps(run.checkpoints)
    if not rows or not steps or steps[-1] != rows[-1]["step"]:
        return {}
    state = DriverState.load(Path(run.checkpoint(steps[-1])))
    both = [name for name in state.scores if name in state.baseline]
    gains = {name: difference_interval(state.scores[name], state.baseline[name]) for name in both}
    return {name: gain for name, gain in gains.items() if gain is not None}


def _parts(config: Mapping[str, Any], results: Sequence[data.Result]) -> list[Part]:
    reward = config.get("reward") or {}
    by_name = {result.metric: result for result in results}
    return [
        Part(name, kind, float(part["weight"]), by_name.get(name))
        for kind, key in (("reward model", "models"), ("rule", "functions"))
        for name, part in (reward.get(key) or {}).items()
    ]


def verdict(parts: Sequence[Part]) -> tuple[str, str] | None:
    """Whether the rules agree with the reward model that was optimised. A model that is gamed gives ever higher scores
    while what it stands for does not rise."""
    models = [p for p in parts if p.kind == "reward model" and p.weight != 0]
    optimised = next(((p.name, p.result.gain) for p in models if p.result), None)
    looked_at = next(((p.name, p.result.gain) for p in parts if p.kind == "rule" and p.result), None)
    if optimised is None or looked_at is None:
        return None
    (model, up), (rule, checked) = optimised, looked_at
    if up.low <= 0:
        return "open", f"The score of {model} has not risen for sure, so there is no gain to check by {rule}."
    if checked.low > 0:
        return "good", f"{model} rose, and so did {rule}: the reward model led where the rule points."
    if checked.high < 0:
        return "bad", f"{model} rose while {rule} fell: the reward model is being gamed; read the samples."
    return "open", f"{model} rose, {rule} did not follow for sure: look whether the reward model is gamed."


def flat(tree: Any, path: str = "") -> dict[str, str]:
    """Settings by key path, as text. None and empty sections are left out."""
    if isinstance(tree, Mapping):
        out: dict[str, str] = {}
        for key, value in tree.items():
            out |= flat(value, f"{path}.{key}" if path else str(key))
        return out
    return {} if tree is None or tree == [] else {path: str(tree)}


def shared(configs: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The settings that every stage has alike."""
    first, *others = [flat(config) for config in configs]
    return {key: text for key, text in first.items() if all(other.get(key) == text for other in others)}


def _defaults() -> dict[str, str]:
    least = {"name": "x", "algorithm": "ppo", "model": {"path": "x"}, "data": {"path": "x"}, "critic": {}}
    settings = flat(Config.model_validate(least).model_dump(mode="json"))
    said = ("name", "algorithm.name", "model.path", "data.path")
    return {key: text for key, text in settings.items() if key not in said}


DEFAULTS = _defaults()
"""What a config says without being told."""
