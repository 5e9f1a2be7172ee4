"""What becomes of a step's scores: metrics, the ledger, and the end of a run whose rewards keep failing.

In: references of scores. Out: notes in the step's row, outcomes in the ledger, RunFailed past `reward.max_failures`.
Left out: computing scores (the scorers), what the learner makes of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from actors.types import ScoreBatch
from cluster.batch import ScoreRefs, StepBatch, Wave, baselines, dropped_groups
from cluster.columns import Ref
from cluster.errors import RunFailed
from cluster.workers import ScorerPool, put

if TYPE_CHECKING:
    from cluster.job import Job


class Scoring:
    """`scores` and `kept` are of the step that was settled last: every sample's scores, the groups that are trained."""

    def __init__(self, job: Job, scorers: ScorerPool) -> None:
        self._job = job
        self._scorers = scorers
        self.scores: ScoreBatch = ScoreBatch(np.zeros(0), {})
        self.kept: list[int] = []

    def fetch(self, refs: ScoreRefs) -> ScoreBatch:
        return ScoreBatch.concat(self._scorers.wait([scores for scores, _ in refs]))

    def baseline(self, wave: Wave) -> Ref:
        """The greedy responses' scores, one for each sample of the wave."""
        return put(baselines(wave.samples, self.fetch(self._scorers.score(wave.greedy)).values))

    def settle(self, step: int, batch: StepBatch) -> None:
        """Wait for the step's scores; note them, drop the groups without any, count failures."""
        samples = batch.samples
        self.scores = self.fetch(batch.scores)
        reports = self._scorers.wait([report for _, report in batch.scores])
        self._job.role("scorer", "score", max(report.seconds for report in reports))
        self._note(batch)
        unscored = dropped_groups(self.scores.values, samples)
        self._job.ledger.dropped(sorted(unscored), "no score")
        self._job.ledger.dropped(sorted(batch.flat - unscored), "no spread")
        self.kept = [group for group in samples.groups if group not in unscored | batch.flat]
        self._job.ledger.scored(self.kept)
        self._count_failures(step)

    def _note(self, batch: StepBatch) -> None:
        known = self.scores.values[np.isfinite(self.scores.values)]
        note: dict[str, Any] = {"score/failed": float(len(self.scores) - len(known))}
        if len(known):
            note |= {"reward/mean": known.mean(), "reward/std": known.std(ddof=1) if len(known) > 1 else 0.0}
        for name, part in self.scores.parts.items():
            if np.isfinite(part).any():
                note[f"reward/{name}"] = float(np.nanmean(part))
        if len(batch.waves) > 1 or batch.flat:
            note |= {"groups/flat": float(len(batch.flat)), "groups/waves": float(len(batch.waves))}
        self._job.note(note)

    def _count_failures(self, step: int) -> None:
        failed = int((~np.isfinite(self.scores.values)).sum())
        if not failed:
            return
        reason = next(iter(self.scores.errors.values()), "no reason given")
        job = self._job
        job.events.write("reward", f"{failed} samples have no score; the first: {reason}", step)
        job.state.failures += failed
        limit = job.config.reward.max_failures
        if job.state.failures > limit:
            raise RunFailed(
                f"{job.state.failures} samples have no score, more than reward.max_failures ({limit}); the last "
                f"reason: {reason}"
            )
