"""A step's columns as one rank takes them: flat arguments of a call, put together again.

In: a layout and values in its order (cluster/experience/columns.py). Out: StepInputs. Left out: what is made of them
(learners).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from actors.types import SampleBatch, ScoreBatch
from learners.methods.method import StepInputs, assemble


def step_inputs(layout: Mapping[str, Any], columns: Sequence[Any]) -> StepInputs:
    """StepInputs from flat arguments: Ray resolves references only at the top level of a call. `layout` holds step,
    kl_coef, kto_baseline, row_reference, and how many of `columns` each of COLUMNS takes, in that order."""
    rest = list(columns)

    def take(name: str) -> list[Any]:
        taken = rest[: layout[name]]
        del rest[: layout[name]]
        return taken

    batch = SampleBatch.concat(take("batch"))
    scores = ScoreBatch.concat(take("scores"))
    length = len(batch.token_ids)

    def column(name: str) -> np.ndarray | None:
        shares = take(name)
        return assemble(shares, length) if shares else None

    reference, old, values = column("reference"), column("old"), column("values")
    baseline = take("baseline")
    return StepInputs(
        step=int(layout["step"]),
        batch=batch,
        scores=scores,
        kl_coef=float(layout["kl_coef"]),
        reference=reference,
        old=old,
        values=values,
        baseline=np.concatenate(baseline) if baseline else None,
        kto_baseline=layout["kto_baseline"],
        row_reference=layout["row_reference"],
    )
