"""Render the report: gathered data, plotly and our scripts into one HTML file.

In: a run directory. Out: RUN/report.html, written atomically, self-contained: the page's own security policy forbids
it every request. Left out: what the data means (data.py), charts and sample browser (templates/*.js).
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

from cluster.run import text
from cluster.run.directory import RunDirectory, write_atomic
from cluster.run.records.metrics import Interval, Row, read_events, read_metrics
from cluster.run.records.timeline import read_timeline
from cluster.run.report import data
from cluster.run.report.excerpt import excerpt
from cluster.run.report.timeline import strips

SCRIPTS = ("common.js", "charts.js", "times.js", "timeline.js", "samples.js", "main.js")


def write_report(run: RunDirectory, max_samples: int = 400) -> Path:
    """Write the run's report and return its path. A run without a step yet gets a page that says so."""
    write_atomic(run.report_file, render(run, max_samples))
    return run.report_file


def render(run: RunDirectory, max_samples: int, now: float | None = None) -> str:
    from plotly.offline import get_plotlyjs

    rows = read_metrics(run.metrics_file)
    events = read_events(run.events_file)
    config = run.read_config() if run.config_file.exists() else {}
    metric = str((config.get("evaluation") or {}).get("metric", "reward"))
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cluster.run.report"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"number": text.number, "duration": text.duration}
    environment.globals["interval"] = lambda i, signed=False: text.interval(i.mean, i.low, i.high, signed=signed)
    result = data.result_of(rows, events, metric)
    embedded = {
        "series": data.series(rows),
        "evals": data.eval_names(rows),
        "samples": excerpt(run, max_samples),
        "events": data.latest_events(events),
        "timeline": strips(read_timeline(run), events),
    }
    return environment.get_template("page.html.j2").render(
        name=config.get("name", run.root.name),
        facts=data.facts(config),
        result=result,
        scale=_scale(result),
        change=data.change_of(rows),
        tiles=_tiles(rows, config),
        rows=rows,
        events=events,
        config=yaml.safe_dump(config, sort_keys=False, allow_unicode=True) if config else "",
        directory=str(run),
        written=time.strftime("%Y-%m-%d %H:%M", time.localtime(now)),
        style=Markup(part("style.css")),  # our own files, no run's text in them
        plotly=Markup(get_plotlyjs()),
        scripts=Markup("\n".join(part(name) for name in SCRIPTS)),
        embedded=Markup(safe_json(embedded)),
    )


def safe_json(value: Any) -> str:
    """JSON that may stand inside a script element: nothing in it can end the element or open a comment."""
    dense = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return dense.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def part(name: str) -> str:
    """A file of the templates, as it is."""
    return (Path(__file__).parent / "templates" / name).read_text()


def _tiles(rows: list[Row], config: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Small numbers under the headline: label, value, remark."""
    if not rows:
        return []
    tiles = [("steps", text.number(rows[-1]["step"]), f"of {config['steps']}" if "steps" in config else "")]
    seconds = data.wall_time_s(rows)
    if seconds is not None:
        tiles.append(("time", text.duration(seconds), "in steps"))
    for label, name, remark in (
        ("reward", "reward/mean", "last step, mean"),
        ("preference accuracy", "preference/accuracy", "last step"),
        ("KL to reference", "kl/ref", "last step, nats a token"),
        ("response", "response/length_mean", "tokens, last step"),
        ("throughput", "throughput/tokens_per_s", "tokens/s, median"),
        ("idle", "time/idle_fraction", "share of a step, median"),
    ):
        known = sorted(float(value) for row in rows if (value := row.get(name)) is not None)
        if not known:
            continue
        shown = known[len(known) // 2] if "median" in remark else _last(rows, name)
        tiles.append((label, f"{shown:.1%}" if name == "time/idle_fraction" else text.number(shown), remark))
    return tiles


def _last(rows: list[Row], name: str) -> float:
    return next(float(value) for row in reversed(rows) if (value := row.get(name)) is not None)


def _scale(result: data.Result | None) -> dict[str, tuple[float, float, float]]:
    """Where before, after and best stand on a common axis: (left, width, mean) in percent of its length."""
    if result is None:
        return {}
    shown = {"before": result.before, "after": result.after, "best": result.best}
    low = min(0.0, *(i.low for i in shown.values()))
    high = max(1.0 if result.after.high > 0.5 else 0.0, *(i.high for i in shown.values()))
    span = (high - low) or 1.0

    def place(i: Interval) -> tuple[float, float, float]:
        return (i.low - low) / span * 100, (i.high - i.low) / span * 100, (i.mean - low) / span * 100

    return {name: place(i) for name, i in shown.items()}
