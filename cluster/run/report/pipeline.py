"""A pipeline's report: a table of its stages, then each with its curves, its settings and its own full page inside.

In: a pipeline's directory, whatever stage it is in. Out: DIR/report.html, self-contained. The stages' pages ride along
as text without plotly, which the page puts back when one is opened. Left out: what a stage's page says (page.py).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from cluster.run import text
from cluster.run.directory import RunDirectory, write_atomic
from cluster.run.report import data
from cluster.run.report.page import SCRIPTS, part, render, safe_json
from cluster.run.report.stage import StageView, flat, shared, view
from cluster.run.stages import PipelineDirectory

OWN_SCRIPTS = (*(name for name in SCRIPTS if name in ("common.js", "charts.js")), "pipeline.js")
PLOTLY_GOES_HERE = "/*raylign:plotly*/"


def write_pipeline_report(directory: PipelineDirectory, max_samples: int = 400) -> Path:
    """Write the pipeline's report and return its path. Works while a stage runs, and before the first."""
    write_atomic(directory.report_file, render_pipeline(directory, max_samples))
    return directory.report_file


def render_pipeline(directory: PipelineDirectory, max_samples: int, now: float | None = None) -> str:
    from plotly.offline import get_plotlyjs

    plotly = get_plotlyjs()
    saved, done = directory.read(), directory.finished()
    common = shared(saved["stages"])
    stages = [
        view(name, run, config, done.get(name), set(common))
        for (name, run), config in zip(directory.runs(), saved["stages"], strict=True)
    ]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cluster.run.report"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"number": text.number, "duration": text.duration}
    environment.globals["interval"] = lambda i, signed=False: text.interval(i.mean, i.low, i.high, signed=signed)
    runs = [run for _, run in directory.runs()]
    return environment.get_template("pipeline.html.j2").render(
        name=saved["name"],
        stages=stages,
        common=_told(common, stages),
        directory=str(directory),
        written=time.strftime("%Y-%m-%d %H:%M", time.localtime(now)),
        style=Markup(part("style.css") + part("pipeline.css")),  # our own files, no run's text in them
        plotly=Markup(plotly),
        scripts=Markup("\n".join(part(name) for name in OWN_SCRIPTS)),
        embedded=Markup(
            safe_json(
                {
                    "series": None,
                    "plotly": PLOTLY_GOES_HERE,
                    "stages": [
                        _drawn(stage, run, max_samples, plotly) for stage, run in zip(stages, runs, strict=True)
                    ],
                }
            )
        ),
    )


def _told(common: dict[str, str], stages: list[StageView]) -> list[tuple[str, str]]:
    """Shared settings that somebody chose."""
    from cluster.run.report.stage import DEFAULTS

    known = flat(stages[0].config)
    return [(key, common[key]) for key in known if key in common and common[key] != DEFAULTS.get(key)]


def _drawn(stage: StageView, run: RunDirectory, max_samples: int, plotly: str) -> dict[str, Any]:
    """What the browser draws of a stage."""
    return {
        "name": stage.name,
        "series": data.series(stage.rows),
        "evals": data.eval_names(stage.rows),
        "parts": [{"name": p.name, "kind": p.kind, "weight": p.weight} for p in stage.parts],
        "page": render(run, max_samples).replace(plotly, PLOTLY_GOES_HERE) if stage.state != "waiting" else None,
    }
