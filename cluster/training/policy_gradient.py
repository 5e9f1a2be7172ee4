"""An online run under a policy-gradient method: what its step does between the samples and the published weights.

In: an OnlineJob's workers and a resolved Method. Out: the verbs that `cluster/ppo.py` reads as one page. Left out: the
order of a step (cluster/ppo.py), pools and publishing (online.py).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from actors.types import Prompt
from cluster.config import resolve
from cluster.experience.batch import StepBatch, Wave
from cluster.experience.columns import StepColumns
from cluster.inputs.online import OnlineInputs
from cluster.training.online import OnlineJob, once
from cluster.training.parts.logbook import Run
from cluster.training.parts.online_workers import OnlineWorkers
from learners.methods.kl_control import AdaptiveKL
from learners.methods.method import UpdateResult, needs_old


class PolicyGradientJob(OnlineJob):
    """Workers and verbs of one on-policy run, with a critic or without."""

    def __init__(self, run: Run, workers: OnlineWorkers, inputs: OnlineInputs, tokenizer: Any) -> None:
        super().__init__(run, workers, inputs, tokenizer)
        self.method = resolve.resolve_method(self.config)
        self.state.kl_coef = self.method.preset.kl_coef
        self._critic_update: UpdateResult | None = None

    def batch(self) -> StepBatch:
        """An empty batch, which says how many prompts it lacks."""
        rounds = self.config.algorithm.resample.rounds if self.method.preset.resample_flat_groups else 1
        return StepBatch(self.config.rollout.prompts_per_step, rounds, self.scoring.fetch)

    def generate(self, prompts: Sequence[Prompt]) -> Wave:
        wave = super().generate(prompts)
        if self.method.preset.advantage != "remax":
            return wave
        greedy = replace(once(self.sampling), temperature=0.0)
        answers = self.rollouts.generate(prompts, greedy, self.publisher.version.number)
        return replace(wave, greedy=answers, seconds=wave.seconds + max(s.seconds for s in answers.stats))

    def forget_progress(self) -> None:
        super().forget_progress()
        self.state.kl_coef = self.method.preset.kl_coef

    def score(self, step: int, batch: StepBatch) -> StepColumns:
        """Scores, and the log-probs and values that the method needs, in parallel."""
        self.make_room()
        samples = batch.samples
        columns: dict[str, Any] = {}
        if self.method.needs_reference:
            columns["reference"] = self.learner.reference_logprobs(samples.chunks)
        if needs_old(self.method, resolve.policy_settings(self.config, "", 1).update):
            columns["old"] = self.learner.policy_logprobs(samples.chunks)
        if self.config.critic is not None:
            columns["values"] = self.learner.values(samples.chunks)
        for name, refs in columns.items():  # the learner takes them in this order: the waits between are its seconds
            began = time.monotonic()
            self.learner.wait(refs, f"computing {name}")
            self.role("learner", name, time.monotonic() - began)
        if self.method.preset.advantage == "remax":
            columns["baseline"] = tuple(self.scoring.baseline(wave) for wave in batch.waves)
        self.note_rollout(*batch.rollout_stats)
        scores = self.scoring.settle(step, batch)
        measured = StepColumns(step=step, kl_coef=self.state.kl_coef, batch=samples.chunks, scores=tuple(scores))
        return replace(measured, **columns)

    def update_critic(self, columns: StepColumns) -> None:
        if self.config.critic is None:
            return
        result = self._critic_update = self.learner.update_critic(columns)
        self.role("learner", "update_critic", result.seconds)
        self.note(result.metrics)

    def update_policy(self, columns: StepColumns, batch: StepBatch) -> None:
        samples = batch.samples
        rows = len(samples.groups) * samples.samples_per_prompt
        result = self.learner.update_policy(columns, self.rows_to_show(rows))
        self.role("learner", "update_policy", result.seconds)
        self.note(result.metrics)
        self.check_update(columns.step, columns, result, self._critic_update)
        self._next_kl(result, rows)
        self.ledger.trained(self.scoring.kept, columns.step)
        self.details = result.details

    def _next_kl(self, result: UpdateResult, samples: int) -> None:
        self.note({"kl/coef": self.state.kl_coef})
        kl = self.config.algorithm.kl
        # Neither is measured in a step that was skipped. kl/ref, k3, is a curve: one token can make it anything.
        by_token, by_sequence = (result.metrics.get(name, math.nan) for name in ("kl/ref_k1", "kl/ref_sequence"))
        if kl.target is not None and math.isfinite(by_sequence):
            controller = AdaptiveKL(self.state.kl_coef, kl.target, kl.horizon)
            self.state.kl_coef = controller.update(by_sequence, samples).coef
        if math.isfinite(by_token):
            self.state.kl_ref_k1 = by_token
