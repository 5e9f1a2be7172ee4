"""A run on preferences: pairs, or single judged responses (KTO), over the offline loop's page (cluster/dpo.py).

In: a checked config and its rows. Out: the verbs of an offline run. Left out: the losses (learners), the order of a
step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from actors.data.batches import judged_batch, judged_of, mismatched_batch, pair_batch, pairs_of, partners
from actors.data.judged import JudgedResponse
from actors.data.preferences import PreferencePair
from actors.data.stored import StoredRows
from actors.types import SampleBatch
from cluster.config import resolve
from cluster.experience.columns import StepColumns
from cluster.run.records.evaluation import followed
from cluster.training.offline import OfflineJob, Part, Placed
from cluster.training.parts.reference_sums import ReferenceSums, weights_identity
from learners.methods.presets import REFERENCE_FREE

Judged = PreferencePair | JudgedResponse


class PreferenceJob(OfflineJob[Judged]):
    """Workers and verbs of one offline preference run. Evaluated by whether held-out preferences are followed."""

    def prepare(self) -> None:
        """Measure the reference on every row that the run will take. Right after loading, the policy is it."""
        self._settings = resolve.preference_settings(self.config)
        self._pairs = not self._settings.judged
        self._kto = self._settings.loss == "kto"
        self._sums: dict[Part, ReferenceSums] = {}
        self._partners: dict[Part, list[int]] = {}
        if self._settings.loss in REFERENCE_FREE:
            return
        taken = self.order.take(0, self.config.steps * self.config.rows_per_step)
        self._measure("train", sorted({row for row, _ in taken}))
        if self.heldout is not None:
            self._measure("heldout", range(len(self.heldout)))

    def _source(self, part: Part) -> StoredRows[Judged]:
        if part == "train":
            return self.train
        if self.heldout is None:
            raise ValueError("the run holds no rows out")
        return self.heldout

    def _measure(self, part: Part, rows: Sequence[int]) -> None:
        source = self._source(part)
        if self._kto:
            self._partners[part] = partners([row.prompt_tokens for row in source.rows])
        model = f"{weights_identity(self.model_path)}/{self.config.model.dtype}"
        identity = f"{model}/{self._settings.loss}/{source.fingerprint()}"
        width = (2 if self._pairs else 1) + self._kto
        sums = ReferenceSums(self.directory.root / f"reference-{part}.npz", identity, len(source), width)
        sums.fill(
            rows,
            lambda some: self._reference_of(part, some),
            lambda done, of: self.console.phase(f"reference log-probs, {part} {done}/{of}"),
        )
        self._sums[part] = sums

    def _reference_of(self, part: Part, rows: Sequence[int]) -> np.ndarray:
        """float64 [n, K]: the present policy's sums of each row's responses and, for KTO, of the mismatched one."""
        source = self._source(part)
        placed = [(source[row], row) for row in rows]
        own = self.row_logprobs(self._batch(placed))[:, 0].reshape(len(rows), -1)
        if not self._kto:
            return own
        return np.concatenate([own, self.row_logprobs(self._mismatched(placed, part))[:, :1]], axis=1)

    def _batch(self, rows: Placed[Judged]) -> SampleBatch:
        return pair_batch(pairs_of(rows)) if self._pairs else judged_batch(judged_of(rows))

    def _mismatched(self, rows: Placed[Judged], part: Part) -> SampleBatch:
        source, others = self._source(part), self._partners[part]
        return mismatched_batch(rows, [source[others[row.id]] for row, _ in rows])

    def columns(self, step: int, rows: Placed[Judged], part: Part) -> StepColumns:
        labels = None if self._pairs else [row.label for row, _ in judged_of(rows)]
        columns = self.stored(step, self._batch(rows), labels)
        if part not in self._sums:  # a loss without a reference
            return columns
        known = self._sums[part].values[[row.id for row, _ in rows]]
        own = known[:, : 2 if self._pairs else 1].reshape(-1)
        columns = dataclasses.replace(columns, row_reference=own)
        if not self._kto:
            return columns
        mismatched = self.with_logprobs(self.stored(step, self._mismatched(rows, part)))
        baseline = self.learner.kto_baseline(dataclasses.replace(mismatched, row_reference=known[:, -1]))
        if part == "train":
            self.note({"kl/kto_baseline": baseline})
        return dataclasses.replace(columns, kto_baseline=baseline)

    def evaluate(self, step: int) -> None:
        """Pairs: is the chosen response's implicit reward the greater, and by how much. Judged responses: does a
        reward above KTO's reference point go with a desirable one."""
        if not self.heldout:
            return
        margins: list[float] = []
        for rows in self.heldout_parts():
            columns = self.columns(step, rows, "heldout")
            rewards = self.learner.row_rewards(self.with_logprobs(columns))
            if self._pairs:
                margins += (rewards[0::2] - rewards[1::2]).tolist()
            else:
                signs = np.where([row.label > 0.5 for row, _ in judged_of(rows)], 1.0, -1.0)
                margins += (signs * (rewards - self._settings.beta * self._baseline_of(columns))).tolist()
        self.settle(step, {"accuracy": followed(margins), "margin": margins})

    def _baseline_of(self, columns: StepColumns) -> float:
        if columns.kto_baseline is None:
            raise ValueError("judged responses are compared with KTO's reference point, which was not measured")
        return columns.kto_baseline

    @property
    def evaluation_metric(self) -> str:
        return "accuracy"
