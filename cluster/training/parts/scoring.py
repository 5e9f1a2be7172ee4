"""What becomes of a step's scores: metrics, the ledger, and the end of a run whose rewards keep failing.

In: references of scores. Out: notes in the step's row, outcomes in the ledger, RunFailed past `reward.max_failures`.
Left out: computing scores (the scorers), what the learner makes of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from actors.types import ScoreBatch
from cluster.config.sections.reward import Safety
from cluster.errors import RunFailed
from cluster.experience.batch import ScoreRefs, StepBatch, Wave, baselines, dropped_groups
from cluster.experience.columns import Ref
from cluster.training.parts.logbook import Logbook
from cluster.workers import ScorerPool, put
from learners.methods.constraint import Multiplier, constrained_scores


class Scoring:
    """`scores` and `kept` are of the step that was settled last: every sample's scores as they came, the groups that
    are trained."""

    def __init__(self, logbook: Logbook, scorers: ScorerPool) -> None:
        self._logbook = logbook
        self._scorers = scorers
        self._safety = logbook.config.reward.safety
        self.scores: ScoreBatch = ScoreBatch(np.zeros(0), {})
        self.kept: list[int] = []
        self._processes: set[int] = set()

    def fetch(self, refs: ScoreRefs) -> ScoreBatch:
        """Scores as the policy is trained on them: under a safety constraint the rewards less their costs."""
        return self._trained(self._raw(refs))

    def baseline(self, wave: Wave) -> Ref:
        """The greedy responses' scores, one for each sample of the wave."""
        if wave.greedy is None:
            raise ValueError("a baseline is the score of a greedy response, and this wave has none")
        return put(baselines(wave.samples, self.fetch(self._scorers.score(wave.greedy)).values))

    def settle(self, step: int, batch: StepBatch) -> list[Ref]:
        """Wait for the step's scores; note them, drop the groups without any, count failures. The references that the
        learner takes."""
        samples = batch.samples
        self.scores = self._raw(batch.scores)
        trained = self._trained(self.scores)
        reports = self._scorers.wait([report for _, report in batch.scores])
        self._tell_of_restarts({report.process for report in reports})
        self._logbook.role("scorer", "score", max(report.seconds for report in reports))
        self._note(batch)
        unscored = dropped_groups(trained.values, samples)
        self._logbook.ledger.dropped(sorted(unscored), "no score")
        self._logbook.ledger.dropped(sorted(batch.flat - unscored), "no spread")
        self.kept = [group for group in samples.groups if group not in unscored | batch.flat]
        self._logbook.ledger.scored(self.kept)
        self._count_failures(step, trained)
        if self._safety is None:
            return [scores for scores, _ in batch.scores]
        self._move_multiplier(self._safety)
        return [put(trained)]

    def _tell_of_restarts(self, processes: set[int]) -> None:
        """Ray starts a scorer that died again by itself; its new process is how it shows."""
        count = self._logbook.config.reward.processes
        for process in sorted(processes - self._processes):
            if len(self._processes) >= count:
                self._logbook.events.write("recovered", f"a scorer was started again, as process {process}")
            self._processes.add(process)

    def _raw(self, refs: ScoreRefs) -> ScoreBatch:
        return ScoreBatch.concat(self._scorers.wait([scores for scores, _ in refs]))

    def _trained(self, scores: ScoreBatch) -> ScoreBatch:
        if self._safety is None:
            return scores
        costs = weighted_costs(self._safety, scores)
        failed = {row: "a cost has no value" for row in np.flatnonzero(np.isnan(costs)).tolist()}
        values = constrained_scores(scores.values, costs, self._logbook.state.multiplier)
        return ScoreBatch(values, scores.parts, failed | dict(scores.errors))

    def _move_multiplier(self, safety: Safety) -> None:
        """After the batch: its mean cost decides the next one's multiplier. Without any cost it stays."""
        costs, state = weighted_costs(safety, self.scores), self._logbook.state
        note = {"safety/multiplier": state.multiplier, "safety/bound": safety.bound}
        if np.isfinite(costs).any():
            note["safety/cost"] = float(np.nanmean(costs))
            multiplier = Multiplier(state.multiplier, safety.bound, safety.lr, safety.max_multiplier)
            state.multiplier = multiplier.update(note["safety/cost"]).value
        self._logbook.note(note)

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
        self._logbook.note(note)

    def _count_failures(self, step: int, trained: ScoreBatch) -> None:
        failed = int((~np.isfinite(trained.values)).sum())
        if not failed:
            return
        reason = next(iter(trained.errors.values()), "no reason given")
        logbook = self._logbook
        logbook.events.write("reward", f"{failed} samples have no score; the first: {reason}", step)
        logbook.state.failures += failed
        limit = logbook.config.reward.max_failures
        if logbook.state.failures > limit:
            raise RunFailed(
                f"{logbook.state.failures} samples have no score, more than reward.max_failures ({limit}); the last "
                f"reason: {reason}; mend the reward and resume with a higher reward.max_failures"
            )


def weighted_costs(safety: Safety, scores: ScoreBatch) -> np.ndarray:
    """float64 [B]: the weighted sum of the costs, NaN where one of them has no value."""
    weights = {name: function.weight for name, function in safety.functions.items()}
    weights |= {name: model.weight for name, model in safety.models.items()}
    costs = np.zeros(len(scores), np.float64)
    for name, weight in weights.items():
        costs += weight * scores.parts[name]
    return costs
