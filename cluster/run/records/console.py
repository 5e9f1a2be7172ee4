"""What a person sees while a run goes on: a live table on a terminal, one plain line a step elsewhere.

In: the run's header, each step's metrics row, events, a summary. Out: text on a stream. Left out: files
(metrics.py), the report, and deciding anything. Clock and stream are passed in, so that tests
neither sleep nor need a terminal.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from rich.box import ROUNDED
from rich.console import Console as RichConsole
from rich.console import Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from cluster.run.records.metrics import Interval
from cluster.run.text import duration, interval, number, sparkline

SHOWN = (
    "reward/mean",
    "loss",
    "preference/accuracy",
    "preference/margin",
    "safety/cost",
    "safety/multiplier",
    "kl/ref",
    "kl/ref_k1",
    "policy/entropy",
    "policy/clip_fraction",
    "value/explained_variance",
    "response/length_mean",
    "response/truncated",
    "throughput/tokens_per_s",
)
"""Rows of the live table, in order, where a run has them; evaluations come first."""

PLAIN = ("reward/mean", "loss", "preference/accuracy", "kl/ref", "response/length_mean", "throughput/tokens_per_s")
BEST_HIGH = ("reward/mean", "preference/accuracy", "preference/margin", "value/explained_variance", "eval/")
BEST_LOW = ("eval/perplexity", "eval/calibration_error")
RECENT = 20


@dataclass(frozen=True, slots=True)
class Header:
    """What runs: `where` is a short sentence on machine and placement; first_step: last step done before a resume."""

    name: str
    method: str
    model: str
    where: str
    steps: int
    first_step: int = 0


@dataclass(frozen=True, slots=True)
class Summary:
    """How it ended. metric: what the evaluation measured, e.g. "accuracy". gain: after - before, with its interval."""

    metric: str
    before: Interval | None
    after: Interval | None
    gain: Interval | None
    eval_prompts: int
    best_step: int | None
    report: Path
    model: Path | None
    outcome: str = "finished"


class Console:
    """Progress of one run: start, then phase, step and event in any order, then finish (or close, after a failure)."""

    def __init__(
        self, out: TextIO | None = None, clock: Callable[[], float] = time.monotonic, live: bool | None = None
    ) -> None:
        self._rich = RichConsole(file=out or sys.stdout, highlight=False, soft_wrap=live is False)
        self._is_live = self._rich.is_terminal if live is None else live
        self._clock = clock
        self._header: Header | None = None
        self._live: Live | None = None
        self._history: dict[str, deque[float | None]] = {}
        self._latest: Mapping[str, float | None] = {}
        self._durations_s: deque[float] = deque(maxlen=RECENT)
        self._done = 0
        self._phase = "starting"
        self._began_s = self._last_s = 0.0
        self._spinner = Spinner("dots", style="cyan")

    def start(self, header: Header) -> None:
        self._header = header
        self._done = header.first_step
        self._began_s = self._last_s = self._clock()
        self._rich.print(_title(header))
        if header.first_step:
            self.event(f"continues after step {header.first_step}")
        if self._is_live:
            self._live = Live(get_renderable=self._picture, console=self._rich, refresh_per_second=4, transient=False)
            self._live.start()

    def phase(self, text: str) -> None:
        """What goes on now, e.g. "loading the engine"; on a terminal beside the bar, elsewhere a line before step 1."""
        if text != self._phase and self._live is None and self._done == self._started.first_step and not self._latest:
            self._rich.print(text, markup=False)
        self._phase = text

    def event(self, text: str) -> None:
        """A sentence that stays on the screen, above the table."""
        self._rich.print(Text(f"• {text}"))

    def step(self, row: Mapping[str, float | None]) -> None:
        """A finished step's metrics row. Step 0 is the evaluation before training."""
        now = self._clock()
        step = int(row["step"] or 0)
        if step > self._done:
            self._durations_s.append((now - self._last_s) / (step - self._done))
        self._last_s, self._done, self._latest = now, max(step, self._done), row
        for name, value in row.items():
            self._history.setdefault(name, deque(maxlen=500)).append(value)
        if self._live is None:
            self._rich.print(self._line(row), markup=False)

    def finish(self, summary: Summary) -> None:
        self.close()
        self._rich.print(self._box(summary))

    def close(self) -> None:
        """Leave the terminal as it was. Safe to call twice."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    @property
    def step_s(self) -> float | None:
        """Seconds a step takes: the median of the recent ones, so that an evaluation now and then does not sway it."""
        return statistics.median(self._durations_s) if self._durations_s else None

    @property
    def eta_s(self) -> float | None:
        return None if self.step_s is None else self.step_s * max(0, self._started.steps - self._done)

    @property
    def _started(self) -> Header:
        if self._header is None:
            raise RuntimeError("Console.start(header) comes before everything else")
        return self._header

    def _line(self, row: Mapping[str, float | None]) -> str:
        steps = self._started.steps
        parts = [f"step {int(row['step'] or 0):>{len(str(steps))}}/{steps}"]
        parts += [f"{name} {number(row[name])}" for name in PLAIN if name in row]
        parts += [f"{name} {_evaluation(name, row)}" for name in _evaluations(row)]
        if self.step_s is not None and self.eta_s is not None:
            parts.append(f"{duration(self.step_s)}/step")
            parts.append(f"ETA {duration(self.eta_s)}" if self._done < steps else "done")
        return "  ".join(parts)

    def _picture(self) -> Group:
        return Group(self._progress(), self._table()) if self._latest else Group(self._progress())

    def _progress(self) -> Table:
        header = self._started
        bar = Table.grid(padding=(0, 2))
        elapsed = duration(self._clock() - self._began_s)
        left = f"ETA {duration(self.eta_s)}" if self.eta_s is not None else "ETA after the first step"
        bar.add_row(
            self._spinner,
            Text(f"step {self._done}/{header.steps}", style="bold"),
            ProgressBar(total=header.steps, completed=self._done, width=28),
            Text(left if self._done < header.steps else "closing", style="cyan"),
            Text(f"{elapsed} so far", style="dim"),
            Text(self._phase, style="dim"),
        )
        return bar

    def _table(self) -> Panel:
        table = Table.grid(padding=(0, 2))
        for justify in ("left", "right", "left", "left"):
            table.add_column(justify=justify, no_wrap=True)
        for name in [*self._seen_evaluations(), *(name for name in SHOWN if name in self._history)]:
            known = [value for value in self._history[name] if value is not None]
            shown = number(known[-1] if known else None)
            if name.startswith("eval/") and known:
                shown = _evaluation(name, {key: values[-1] for key, values in self._history.items()})
            table.add_row(
                Text(name, style="bold" if name.startswith("eval/") else ""),
                Text(shown),
                Text(sparkline(list(self._history[name])), style="cyan"),
                _trend(name, known),
            )
        return Panel(Group(table, self._times()), box=ROUNDED, border_style="dim", expand=False)

    def _times(self) -> Text:
        spent = [f"{label} {duration(seconds)}" for label, seconds in _phases(self._latest)]
        if self.step_s is not None:
            spent.append(f"a step {duration(self.step_s)}")
        return Text(" · ".join(spent), style="dim")

    def _seen_evaluations(self) -> list[str]:
        return _evaluations(self._history)

    def _box(self, summary: Summary) -> Panel:
        rows = Table.grid(padding=(0, 2))
        rows.add_column(style="dim", no_wrap=True)
        rows.add_column(overflow="fold")
        for label, value in (("before", summary.before), ("after", summary.after)):
            if value is not None:
                rows.add_row(label, f"{summary.metric} {interval(value.mean, value.low, value.high)}")
        if summary.gain is not None:
            gain = summary.gain
            verdict = (
                "real: the interval excludes zero" if gain.low > 0 else "a loss" if gain.high < 0 else "not settled"
            )
            style = "bold green" if gain.low > 0 else "bold red" if gain.high < 0 else "bold yellow"
            text = f"{interval(gain.mean, gain.low, gain.high, signed=True)}  {verdict}"
            rows.add_row("gain", Text(text, style=style))
        if summary.after is not None:
            rows.add_row("", Text(f"95 % intervals, {summary.eval_prompts} held-out prompts", style="dim"))
        if summary.best_step is not None:
            rows.add_row("best step", str(summary.best_step))
        rows.add_row("time", f"{duration(self._clock() - self._began_s)}, {self._done} of {self._started.steps} steps")
        if summary.model is not None:
            rows.add_row("model", Text(str(summary.model)))
        rows.add_row("report", Text(str(summary.report)))
        title = Text(f"{self._started.name}: {summary.outcome}", style="bold")
        return Panel(rows, title=title, title_align="left", box=ROUNDED, border_style="green", expand=False)


def _title(header: Header) -> Text:
    bold = (header.name, "bold"), ("  ", "")
    return Text.assemble(*bold, (f"{header.method} · {header.model} · {header.where} · {header.steps} steps", "dim"))


def _phases(row: Mapping[str, float | None]) -> list[tuple[str, float]]:
    """What the driver did in a step, with its seconds: every `time/<phase>_s`, and the publish."""
    names = {name: name[5:-2] for name in row if name.startswith("time/") and name.endswith("_s")}
    names = {**names, "sync/seconds": "publish"}
    return [
        (label, seconds) for name, label in names.items() if label != "step" and (seconds := row.get(name)) is not None
    ]


def _evaluations(names: Mapping[str, object]) -> list[str]:
    """`eval/<name>` of those names, without the bounds of intervals."""
    return [n for n in names if n.startswith("eval/") and not n.endswith(("_low", "_high"))]


def _evaluation(name: str, row: Mapping[str, float | None]) -> str:
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    mean = row[name]
    return number(mean) if mean is None or low is None or high is None else interval(mean, low, high)


def _trend(name: str, known: list[float]) -> Text:
    """Change from the first tenth (at least one value) to the last tenth, green where that is what one wants."""
    if len(known) < 2:
        return Text("")
    tenth = max(1, len(known) // 10)
    change = sum(known[-tenth:]) / tenth - sum(known[:tenth]) / tenth
    arrow = "→" if abs(change) < 1e-12 else "↑" if change > 0 else "↓"
    wanted = name.startswith(BEST_HIGH) and name not in BEST_LOW
    style = "dim" if not wanted or arrow == "→" else "green" if change > 0 else "red"
    return Text(f"{arrow} {'+' if change > 0 else ''}{number(change)}", style=style)
