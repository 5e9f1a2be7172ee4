"""What the report says, gathered from a run directory as plain JSON-ready data.

In: metrics.jsonl, events.jsonl, config.yaml. Out: `Headline` (how it went, in a few numbers) and `series` (columns by
metric name). Left out: samples (excerpt.py) and how it looks (templates).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.run.records.metrics import Interval, Row
from learners.methods.presets import PRESETS

MAX_POINTS = 2000
"""Steps drawn at most; a longer run is thinned evenly, evaluations kept."""
MAX_EVENTS = 500


@dataclass(frozen=True, slots=True)
class Result:
    """Before and after of the metric that decides. `steps` are those of before, after and best."""

    metric: str
    before: Interval
    after: Interval
    best: Interval
    gain: Interval
    gain_is_paired: bool
    """The run recorded the interval of the paired difference; else it is combined from the two intervals."""
    steps: tuple[int, int, int]


def result_of(rows: Sequence[Row], events: Sequence[Mapping[str, Any]], metric: str) -> Result | None:
    """How the evaluation named `metric` (else the first there is) moved; None with fewer than two evaluations.

    A `result` event of the run may carry `gain: [mean, low, high]`, the interval of the paired difference. Without it
    the two intervals count as independent: half-widths add as squares.
    """
    names = [n for n in eval_names(rows) if any(_has(row, f"{n}_low") and _has(row, f"{n}_high") for row in rows)]
    if not names:
        return None
    name = f"eval/{metric}" if f"eval/{metric}" in names else names[0]
    found = [(int(row["step"] or 0), _interval(row, name)) for row in rows if _has(row, name)]
    if len(found) < 2:
        return None
    (first, before), (last, after) = found[0], found[-1]
    best_step, best = max(found, key=lambda pair: pair[1].mean)
    recorded = next(
        (event["gain"] for event in reversed(events) if event["kind"] == "result" and event.get("gain")), None
    )
    if recorded is not None:
        gain = Interval(*(float(number) for number in recorded))
    else:
        mean = after.mean - before.mean
        down = math.hypot(after.mean - after.low, before.high - before.mean)
        up = math.hypot(after.high - after.mean, before.mean - before.low)
        gain = Interval(mean, mean - down, mean + up)
    return Result(name.removeprefix("eval/"), before, after, best, gain, recorded is not None, (first, last, best_step))


def change_of(rows: Sequence[Row]) -> tuple[str, float, float] | None:
    """(metric, at the start, at the end) of the first telling metric, each a mean over a tenth of the run."""
    for name in ("reward/mean", "preference/accuracy", "loss"):
        known = [float(value) for row in rows if (value := row.get(name)) is not None]
        if known:
            tenth = max(1, len(known) // 10)
            return name, sum(known[:tenth]) / tenth, sum(known[-tenth:]) / tenth
    return None


def eval_names(rows: Sequence[Row]) -> list[str]:
    """`eval/<name>` in order of appearance, without the bounds of intervals."""
    names = {name: None for row in rows for name in row if name.startswith("eval/")}
    bounds = {f"{name}{suffix}" for name in names for suffix in ("_low", "_high")}
    return [name for name in names if name not in bounds]


def series(rows: Sequence[Row]) -> dict[str, Any]:
    """Columns for the charts: {"steps": [...], "columns": {name: [...]}, "not_finite": {name: count}, "every": k}.

    A column has None where a step has no such metric or it was not finite; the latter are counted.
    """
    every = math.ceil(len(rows) / MAX_POINTS) or 1
    kept = [
        row
        for index, row in enumerate(rows)
        if index % every == 0 or index == len(rows) - 1 or any(name.startswith("eval/") for name in row)
    ]
    names = {name: None for row in rows for name in row if name not in ("step", "time")}
    holes = {name: sum(1 for row in rows if name in row and row[name] is None) for name in names}
    return {
        "steps": [row["step"] for row in kept],
        "columns": {name: [_short(row.get(name)) for row in kept] for name in names},
        "not_finite": {name: count for name, count in holes.items() if count},
        "every": every,
    }


def facts(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was tuned, on what, towards what: label and text."""
    data, reward = config.get("data") or {}, config.get("reward") or {}
    gym = data.get("reasoning_gym")
    rows = [
        ("method", _method(config)),
        ("model", str((config.get("model") or {}).get("path", ""))),
        ("data", f"reasoning_gym: {gym['task']}" if gym else str(data.get("path") or "")),
    ]
    parts = [f"{name} x {part.get('weight', 1.0):g}" for name, part in _parts(reward)]
    if parts:
        rows.append(("reward", ", ".join(parts)))
    learner, rollout = config.get("learner") or {}, config.get("rollout") or {}
    if learner:
        stage = (learner.get("zero") or {}).get("stage", 0)
        rows.append(("learner", f"{learner.get('ranks', 1)} x {learner.get('backend', '')}, ZeRO {stage}"))
    if rollout and _makes_samples(config):
        rows.append(("rollouts", f"{rollout.get('workers', 1)} x {rollout.get('engine', '')}"))
    return [(label, text) for label, text in rows if text]


def _method(config: Mapping[str, Any]) -> str:
    algorithm = config.get("algorithm") or {}
    name = str(algorithm.get("name", ""))
    advantage = algorithm.get("advantage")
    return f"{name}, advantage {advantage}" if advantage else name


def _makes_samples(config: Mapping[str, Any]) -> bool:
    return (config.get("algorithm") or {}).get("name") in (*PRESETS, "online_dpo")


def _parts(reward: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return [part for kind in ("functions", "models", "judges") for part in (reward.get(kind) or {}).items()]


def wall_time_s(rows: Sequence[Row]) -> float | None:
    """Seconds that the recorded steps took: the sum of `time/step_s`, else first to last row."""
    steps = [float(value) for row in rows if (value := row.get("time/step_s")) is not None]
    if steps:
        return sum(steps)
    return float(rows[-1]["time"] or 0) - float(rows[0]["time"] or 0) if len(rows) > 1 else None


def latest_events(events: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The last events, newest last, with what else they carry as one text."""
    named = ("time", "step", "kind", "text")
    return [
        {
            **{key: event.get(key) for key in named},
            "more": ", ".join(f"{key} {_plain(value)}" for key, value in event.items() if key not in named),
        }
        for event in events[-MAX_EVENTS:]
    ]


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return f"[{', '.join(_plain(item) for item in value)}]"
    return str(value)


def _has(row: Row, name: str) -> bool:
    return row.get(name) is not None


def _interval(row: Row, name: str) -> Interval:
    mean = float(row[name] or 0.0)
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    return Interval(mean, mean if low is None else float(low), mean if high is None else float(high))


def _short(value: float | None) -> float | None:
    """Six significant digits are more than a screen shows, and a third of the bytes."""
    return value if value is None or isinstance(value, int) else float(f"{value:.6g}")
