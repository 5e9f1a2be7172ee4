"""Which samples the report carries: whole steps spread evenly over the run, within a bound on samples and on tokens.

In: a run directory. Out: JSON-ready columns, prompts stored once. Left out: drawing them (templates/samples.js).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cluster.run.directory import RunDirectory
from cluster.run.records.samples import SampleRecord, read_samples

MAX_STEPS = 25
MAX_TOKENS = 250_000
"""About 10 MB of page."""


def excerpt(run: RunDirectory, max_samples: int, max_tokens: int = MAX_TOKENS) -> dict[str, Any]:
    """{"steps": [{"step", "total", "rows"}], "prompts": [...], "steps_on_disk": n}.

    Each step gets an equal share of both bounds: its first samples as far as they fit (at least one). `total` is how
    many are on disk.
    """
    on_disk = run.sample_steps()
    chosen = spread(on_disk, min(MAX_STEPS, max_samples))
    prompts: dict[str, int] = {}
    steps = []
    for number in chosen:
        records = read_samples(run.samples_file(number))
        fitting = _within(records, max_samples // len(chosen), max_tokens // len(chosen))
        rows = [_row(record, prompts.setdefault(record.prompt, len(prompts))) for record in fitting]
        steps.append({"step": number, "total": len(records), "rows": rows})
    return {"steps": steps, "prompts": list(prompts), "steps_on_disk": len(on_disk)}


def spread(steps: Sequence[int], count: int) -> list[int]:
    """At most `count` of the steps, evenly spread, the last always and (with two or more) the first among them."""
    if count <= 0 or not steps:
        return []
    if len(steps) <= count:
        return list(steps)
    if count == 1:
        return [steps[-1]]
    return [steps[round(i * (len(steps) - 1) / (count - 1))] for i in range(count)]


def _within(records: Sequence[SampleRecord], samples: int, tokens: int) -> list[SampleRecord]:
    kept: list[SampleRecord] = []
    spent = 0
    for record in records[:samples]:
        spent += len(record.tokens)
        if kept and spent > tokens:
            break
        kept.append(record)
    return kept


def _row(record: SampleRecord, prompt: int) -> dict[str, Any]:
    return {
        "group": record.group,
        "prompt_id": record.prompt_id,
        "index": record.sample_index,
        "prompt": prompt,
        "response": record.response,
        "score": _short(record.score),
        "parts": {name: _short(score) for name, score in record.parts.items()},
        "error": record.error,
        "finish": record.finish_reason,
        "version": record.version,
        "kl": _short(record.kl),
        "tokens": list(record.tokens),
        "logprobs": _column(record.logprobs),
        "token_kl": _column(record.token_kl),
        "advantages": _column(record.advantages),
        "values": _column(record.values),
    }


def _column(numbers: Sequence[float | None] | None) -> list[float | None]:
    return [_short(number) for number in numbers or ()]


def _short(number: float | None) -> float | None:
    return None if number is None else float(f"{number:.4g}")
