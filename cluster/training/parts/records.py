"""Samples as people look at them: decoded, with their scores and per-token values.

In: TokenDetails from the learner, the step's scores, the prompt source, a tokenizer. Out: SampleRecords. Left out:
which samples (the loop asked the learner for them).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from actors.response_mask import response_mask
from actors.types import ScoreBatch
from cluster.run.records.samples import SampleRecord
from learners.methods.method import TokenDetails


def sample_records(
    step: int, details: Sequence[TokenDetails], scores: ScoreBatch, source: Any, tokenizer: Any
) -> list[SampleRecord]:
    return [_record(step, d, scores, source, tokenizer) for d in details]


def _record(step: int, detail: TokenDetails, scores: ScoreBatch, source: Any, tokenizer: Any) -> SampleRecord:
    sample = detail.sample
    score = scores.score(detail.row)
    ids, mask = sample.token_ids.tolist(), response_mask(sample)
    prompt = source.prompt(sample.prompt_id, sample.group)
    return SampleRecord(
        step=step,
        group=sample.group,
        prompt_id=sample.prompt_id,
        sample_index=sample.sample_index,
        prompt=str(prompt.data["prompt"]),
        response=tokenizer.decode(ids, skip_special_tokens=True),
        score=score.value,
        parts=dict(score.parts),
        error=score.error,
        finish_reason=sample.finish_reason.name.lower(),
        version=min(version for _, version in sample.spans) if sample.spans else 0,
        kl=None if detail.token_kl is None or not mask.any() else float(np.mean(detail.token_kl[mask])),
        tokens=[tokenizer.decode([i]) for i in ids],
        logprobs=detail.logprobs.tolist(),
        token_kl=[] if detail.token_kl is None else detail.token_kl.tolist(),
        advantages=detail.advantages.tolist(),
        values=None if detail.values is None else detail.values.tolist(),
    )
