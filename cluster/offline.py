"""A run on stored rows, here preference pairs: a learner group and what a step does. No rollouts, no engine.

In: a checked config and its pairs. Out: the verbs that `dpo.py` reads as one page. Left out: the order of a step
(dpo.py), records and commits (job.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from actors.data.order import PromptOrder
from actors.data.preferences import PreferencePair
from actors.types import FinishReason, Sample, SampleBatch, ScoreBatch
from cluster.columns import StepColumns
from cluster.config import resolve
from cluster.inputs import OfflineInputs
from cluster.job import Job
from cluster.placement import Placement
from cluster.roles.learner import LearnerSpec
from cluster.workers import LearnerGroup, get, put


class OfflineJob(Job):
    """Workers and verbs of one offline preference run."""

    def start_workers(self, placement: Placement) -> None:
        config = self.config
        self._settings = resolve.preference_settings(config) if config.algorithm.on_pairs else None
        self._reference = resolve.needs_reference(config)
        policy = resolve.policy_settings(config, str(self.model_path), config.steps)
        self.learner = LearnerGroup(
            placement.role("learner"),
            LearnerSpec(
                method=None,
                preference=self._settings,
                policy=policy,
                critic=None,
                reference_path=str(self.model_path) if self._reference else None,
                device=placement.device,
                timeout_s=config.learner.update_timeout_s,
            ),
            config.learner.update_timeout_s,
        )
        timeout_s = config.ray.start_timeout_s
        self._building = self.learner.build(timeout_s)

    def begin(self, inputs: OfflineInputs, commit: Path | None) -> None:
        config = self.config
        self.train, self.heldout = inputs.train, inputs.heldout
        self.order = PromptOrder(len(self.train), config.seed, config.data.shuffle)
        self.state.source = self.train.fingerprint()
        self.console.phase("loading models")
        self.learner.wait_built(self._building, config.ray.start_timeout_s)
        if commit is not None:
            self.restore(commit)
        else:
            self.ledger.clear()

    @property
    def rows_per_step(self) -> int:
        return self.config.algorithm.preference.pairs_per_step

    def take(self, step: int) -> StepColumns:
        """The next rows of the order, admitted in the ledger, as the columns of a step."""
        count = self.rows_per_step
        taken = self.order.take(self.state.position, count)
        self.ledger.admit(step, [(self.order.epoch(position), row, position) for row, position in taken])
        self.state.position += count
        self._taken = [position for _, position in taken]
        return self.columns(step, taken)

    def columns(self, step: int, taken: Sequence[tuple[int, int]]) -> StepColumns:
        """The columns of (row, position) pairs: here of preference pairs, with what their loss compares with."""
        pairs = [(self.train[row], position) for row, position in taken]
        columns = self.scored(step, pair_batch(pairs))
        if self._settings.loss != "kto":
            return columns
        return dataclasses.replace(columns, kto_baseline=self._kto_baseline(step, pairs))

    def update(self, columns: StepColumns) -> None:
        result = self.learner.update_policy(columns)
        self.role("learner", "update_policy", result.seconds)
        self.note(result.metrics)
        self.check_update(columns.step, result, columns)
        self.ledger.trained(self._taken)

    def evaluate(self, step: int) -> None:
        """Accuracy and margin on held-out pairs."""
        if not self.heldout:
            return
        self.console.phase("evaluating")
        margins: list[float] = []
        size = self.rows_per_step
        for begin in range(0, len(self.heldout), size):
            rows = range(begin, min(begin + size, len(self.heldout)))
            columns = self.scored(step, pair_batch([(self.heldout[row], row) for row in rows]))
            old = self.learner.policy_logprobs(columns.batch)
            margins += self.learner.pair_margins(dataclasses.replace(columns, old=old)).tolist()
        accuracy = [float(m > 0) for m in margins]
        if self.note_evaluation(step, {"accuracy": accuracy, "margin": margins}) and step > 0:
            self.export(step)

    @property
    def evaluation_metric(self) -> str:
        return "accuracy"

    def export(self, step: int) -> Path:
        target = self.directory.policy(step)
        weights = self.config.weights
        _, summary = self.learner.weights(int(weights.bucket_mb * (1 << 20)), weights.timeout_s, lambda bucket: None)
        facts = {
            "run": self.config.name,
            "model": self.config.model.path,
            "method": self.config.algorithm.name,
            "step": step,
            "digest": summary.digest,
            "evaluation": self.evaluation_table(),
        }
        self.learner.export(str(target), str(self.model_path), facts)
        self.events.write("export", f"wrote {target.name}", step)
        return target

    def close(self) -> None:
        if self.learner is not None:
            self.learner.close()
        super().close()

    def scored(self, step: int, batch: SampleBatch) -> StepColumns:
        """The batch's columns, with the reference's log-probs where the loss compares with it."""
        batch_ref = put(batch)
        scores = put(ScoreBatch(values=np.zeros(len(batch)), parts={}))
        reference = self.learner.reference_logprobs([batch_ref]) if self._reference else ()
        get(list(reference), self.config.learner.update_timeout_s, "computing reference")
        return StepColumns(step=step, kl_coef=0.0, batch=(batch_ref,), scores=(scores,), reference=reference)

    def _kto_baseline(self, step: int, pairs: Sequence[tuple[PreferencePair, int]]) -> float:
        columns = self.scored(step, mismatched_batch(pairs))
        old = self.learner.policy_logprobs(columns.batch)
        found = self.learner.kto_baseline(dataclasses.replace(columns, old=old))
        self.note({"kl/kto_baseline": found})
        return found


def pair_batch(pairs: Sequence[tuple[PreferencePair, int]]) -> SampleBatch:
    """Pairs as samples: group = position, sample 0 the chosen, sample 1 the rejected response."""
    return SampleBatch.from_samples(
        [
            _sample(pair, position, side, tokens)
            for pair, position in pairs
            for side, tokens in enumerate((pair.chosen_tokens, pair.rejected_tokens))
        ]
    )


def mismatched_batch(pairs: Sequence[tuple[PreferencePair, int]]) -> SampleBatch:
    """Each prompt with the next pair's chosen response: what KTO's reference point is measured on."""
    others = [pair for pair, _ in (*pairs[1:], pairs[0])]
    return SampleBatch.from_samples(
        [_sample(pair, position, 0, other.chosen_tokens) for (pair, position), other in zip(pairs, others, strict=True)]
    )


def _sample(pair: PreferencePair, position: int, side: int, tokens: Sequence[int]) -> Sample:
    n = len(tokens)
    return Sample(
        group=position,
        prompt_id=pair.id,
        sample_index=side,
        prompt_tokens=np.array(pair.prompt_tokens, np.int32),
        token_ids=np.array(tokens, np.int32),
        logprobs=np.zeros(n, np.float32),
        turns=np.zeros(n, np.int16),
        spans=((0, 0),),
        finish_reason=FinishReason.STOP,
    )
