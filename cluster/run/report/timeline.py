"""The timeline as the page draws it: for each worker a strip of columns, each showing what took most of its time.

In: spans by who did them, events. Out: runs of equal columns, small whatever the run's length. Left out: drawing
(timeline.js).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from actors.rollouts.spans import Span
from cluster.run.records.timeline import DRIVER

COLUMNS = 600
MARKED = ("worker", "suspect", "scale", "autoscale")
"""Kinds of events that are drawn as marks."""


def strips(spans: Mapping[str, Sequence[Span]], events: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """{"seconds", "tracks": [{"name", "runs": [[kind, first column, columns]]}], "marks": [[column, text]]}; None where
    nothing was recorded."""
    whole = [span for some in spans.values() for span in some]
    if not whole:
        return None
    begin, end = min(b for _, b, _ in whole), max(e for _, _, e in whole)
    column_s = max(end - begin, 1e-3) / COLUMNS
    order = sorted((who for who in spans if spans[who]), key=lambda who: (who != DRIVER, len(who), who))
    tracks = [{"name": who, "runs": _runs(spans[who], begin, column_s)} for who in order]
    marks = [
        [round((event["time"] - begin) / column_s, 1), event["text"]]
        for event in events
        if event["kind"] in MARKED and begin <= event["time"] <= end
    ]
    return {"seconds": end - begin, "columns": COLUMNS, "tracks": tracks, "marks": marks}


def _runs(spans: Sequence[Span], begin: float, column_s: float) -> list[list[Any]]:
    """Neighbouring columns in which the same kind took the most time; none where less than half was told of."""
    columns: list[dict[str, float]] = [{} for _ in range(COLUMNS)]
    for kind, start, stop in spans:
        at = (start - begin) / column_s
        last = (stop - begin) / column_s
        column = int(at)
        while column < COLUMNS and column < last:
            share = min(last, column + 1) - max(at, column)
            columns[column][kind] = columns[column].get(kind, 0.0) + share
            column += 1
    runs: list[list[Any]] = []
    for column, shares in enumerate(columns):
        if sum(shares.values()) < 0.5:
            continue
        kind = max(shares, key=lambda kind: shares[kind])
        if runs and runs[-1][0] == kind and runs[-1][1] + runs[-1][2] == column:
            runs[-1][2] += 1
        else:
            runs.append([kind, column, 1])
    return runs
