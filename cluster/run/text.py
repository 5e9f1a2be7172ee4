"""Numbers and times as people read them, the same in the console and in the report.

In: plain numbers. Out: short text. Left out: colours and layout.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

TICKS = "▁▂▃▄▅▆▇█"


def number(value: float | None) -> str:
    """Four significant digits: 0.4123, 12,345, 3.1e-05; a dash for None."""
    if value is None or not math.isfinite(value):
        return "\N{EN DASH}"
    if value == int(value) and abs(value) < 1e9:
        return f"{int(value):,}"
    size = abs(value)
    if size < 1e-3 or size >= 1e9:
        return f"{value:.1e}"
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def duration(seconds: float) -> str:
    """8 s, 3 min 20 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


def interval(mean: float, low: float, high: float, *, signed: bool = False) -> str:
    """0.412 [0.345, 0.481]; three decimals, the same for all three."""
    sign = "+" if signed else ""
    return f"{mean:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


def sparkline(values: Sequence[float | None], width: int = 16) -> str:
    """The values as one line of bars, squeezed to `width` by averaging; a gap where no value is finite."""
    if not values:
        return ""
    width = min(width, len(values))
    edges = [round(i * len(values) / width) for i in range(width + 1)]
    bins = [[v for v in values[a:b] if v is not None] for a, b in itertools.pairwise(edges)]
    means = [sum(b) / len(b) if b else None for b in bins]
    known = [m for m in means if m is not None]
    if not known:
        return " " * width
    low, span = min(known), max(known) - min(known)
    top = len(TICKS) - 1
    return "".join(" " if m is None else TICKS[round((m - low) / span * top) if span > 0 else top // 2] for m in means)
