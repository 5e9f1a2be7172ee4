"""A run that makes its own data: rollout pool, scorers, learner group, and what every such step does with them.

In: a checked config and its inputs. Out: the verbs that the loops (cluster/ppo.py, cluster/online_dpo.py) share. Left
out: what is learned from samples (policy_gradient.py, online_pairs.py), records and commits (job.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from actors.data.order import PromptOrder
from actors.engines.probe import Mismatch
from actors.rollouts.generation import RolloutStats
from actors.types import PolicyVersion, Prompt, SampleBatch, SamplingSettings
from cluster.config import resolve
from cluster.errors import RunFailed
from cluster.experience.batch import ScoreRefs, Wave
from cluster.experience.columns import Samples
from cluster.inputs.online import OnlineInputs
from cluster.run.records.samples import write_samples
from cluster.training.job import Job
from cluster.training.parts.elastic import GONE, Elastic
from cluster.training.parts.evaluation import heldout_prompts, heldout_scores
from cluster.training.parts.logbook import Run
from cluster.training.parts.online_workers import OnlineWorkers
from cluster.training.parts.publish import Publisher
from cluster.training.parts.records import sample_records
from cluster.training.parts.scoring import Scoring
from cluster.workers import get, put
from learners.methods.method import TokenDetails

COPY_BYTES = 64 << 20
FIRST_PROBE = 64
"""Responses, and tokens each, on which fresh engines are measured."""


class OnlineJob(Job):
    """Workers and verbs of one online run. `details`: the samples of the last update that are kept for people."""

    def __init__(self, run: Run, workers: OnlineWorkers, inputs: OnlineInputs, tokenizer: Any) -> None:
        super().__init__(run, workers.learner)
        config = run.config
        self.rollouts, self.scorers = workers.rollouts, workers.scorers
        self.learner.heard = self.scorers.heard = self.waiting
        self._built, self._news = workers.built, workers.news
        self.tokenizer = tokenizer
        self.train = inputs.train
        self.heldout = heldout_prompts(inputs)
        self.order = PromptOrder(len(self.train), config.seed, config.data.shuffle)
        self.state.source = self.train.fingerprint()
        self.state.multiplier = self.first_multiplier
        self.sampling = resolve.sampling_settings(config)
        self.details: tuple[TokenDetails, ...] = ()
        self.scoring = Scoring(self, self.scorers)
        self.publisher = Publisher(
            self.rollouts,
            self.learner,
            bucket_bytes=int(config.weights.bucket_mb * (1 << 20)),
            timeout_s=config.weights.timeout_s,
            factor=config.weights.mismatch_factor,
            transport=workers.transport,
            record=lambda version: self.ledger.record_version(version.number, version.digest, self.state.step),
        )
        self.elastic = Elastic(self.rollouts, resolve.autoscale_settings(config), self.events)

    def begin(self, commit: Path | None) -> None:
        """Wait for the workers, calibrate the probe, and restore the last commit or start at step 0."""
        self.console.phase("loading models and engines")
        self._built.result()
        last = PolicyVersion(self.ledger.last_version(), "from disk")
        self.publisher.adopt(last)
        self._copy_rate = self.learner.copy_bytes_per_s(COPY_BYTES)
        if commit is not None and (self.rollouts.inherits or self.learner.found):
            self._go_on_with_the_living(commit)
        else:
            self._measure_fresh(last)
            if commit is not None:
                self._resume(commit)
            else:
                self.ledger.clear()
        self._news.aloud = True

    def _measure_fresh(self, version: PolicyVersion) -> None:
        """Wait for engines that hold what is on disk, and measure them against a learner that holds the same."""
        self.rollouts.adopt(version)
        self.console.phase("probing the engines")
        self.recorded = self._fresh_recorded = self._first_probe()
        fresh = self.publisher.calibrate(self.recorded)
        self.state.fresh_mismatch, self.state.fresh_doubt = fresh.mean, fresh.doubt
        self.forget_load()

    def _go_on_with_the_living(self, commit: Path) -> None:
        """Workers of the driver before hold whatever it left them: the commit's weights are published to them. What was
        measured when they were fresh stands in the commit."""
        self.rollouts.take_over()
        self.restore(commit)
        self._fresh_recorded = self.recorded
        self.publisher.recalibrate(self._measured_before())
        self.forget_load()
        self.publish()
        learner = " and the learner" if self.learner.found else ""
        found = sum(state not in GONE for _, state, _ in self.rollouts.members())
        self.events.write("recovered", f"the run goes on with {found} rollout workers{learner} of the driver before")

    def _measured_before(self) -> Mismatch:
        mean, doubt = self.state.fresh_mismatch, self.state.fresh_doubt
        if mean is None or doubt is None:
            raise RunFailed("the commit does not say how far fresh engines were from the learner; end the old workers")
        return Mismatch(mean, doubt)

    def _first_probe(self) -> Any:
        """Short responses to some prompts, enough to measure the engines against the learner."""
        n = min(max(FIRST_PROBE, self.config.weights.probe_samples), len(self.train))
        one = once(resolve.sampling_settings(self.config))
        short = replace(one, max_tokens=min(one.max_tokens, FIRST_PROBE), min_tokens=0)
        prompts = self.train.prompts(self.order.take(0, n))
        return self.rollouts.generate(prompts, short, self.publisher.version.number, n).recorded

    def _resume(self, commit: Path) -> None:
        fresh = self.state.fresh_mismatch, self.state.fresh_doubt
        self.restore(commit)
        self.state.fresh_mismatch, self.state.fresh_doubt = fresh  # of these engines, not of the ones that are gone
        self.publish()

    def rebuild(self, commit: Path | None) -> None:
        self.rollouts.forget()
        self.start_learner_again(commit)
        self.forget_load()
        if commit is not None:
            self._resume(commit)
            return
        self.forget_progress()
        self.recorded = self._fresh_recorded
        self.publish()

    def start_learner_again(self, commit: Path | None) -> None:
        self.learner.start_again(self.config.ray.start_timeout_s)

    def forget_load(self) -> None:
        """What the workers did until now is no step's."""
        self.elastic.load()

    def finish_step(self, step: int) -> None:
        load = self.elastic.load()
        self.timeline.add(self.rollouts.take_spans())
        self.note(load.metrics())
        super().finish_step(step)
        self.elastic.autoscale(step, load, self.learner_seconds, self.step_seconds)

    def verbs(self) -> Mapping[str, Callable[..., str]]:
        return self.elastic.verbs()

    # --- one step's verbs ---

    def generate(self, prompts: Sequence[Prompt]) -> Wave:
        """Samples of the prompts under the present version; a few of them are recorded for the next probe."""
        version = self.publisher.version.number
        samples = self.rollouts.generate(prompts, self.sampling, version, self.config.weights.probe_samples)
        self.recorded = samples.recorded
        return Wave(samples, None, max(s.seconds for s in samples.stats))

    def admit(self, step: int, count: int) -> list[Prompt]:
        """The next prompts of the order, admitted in the ledger."""
        taken = self.order.take(self.state.position, count)
        rows = [(self.order.epoch(position), row, position) for row, position in taken]
        self.ledger.admit(step, rows)
        self.state.position += count
        return self.train.prompts(taken)

    def send_to_scorers(self, samples: Samples) -> ScoreRefs:
        return self.scorers.score(samples)

    def make_room(self) -> None:
        """Nothing is generated until the next publish: leave the GPU to the learner, where it is shared."""
        if self.config.rollout.sleep_level:
            self.rollouts.sleep()

    def rows_to_show(self, rows: int) -> tuple[int, ...]:
        """Some of so many rows, evenly apart: those whose samples are kept for people to look at."""
        wanted = self.config.tracking.samples_per_step
        return tuple(range(0, rows, max(1, rows // wanted)))[:wanted] if wanted else ()

    def publish(self) -> None:
        published = self.publisher.publish(self.recorded)
        self.role("rollout", "sync", published.seconds)
        self.note({**published.metrics(), "throughput/copy_bytes_per_s": self._copy_rate})

    def record(self, step: int) -> None:
        """Write the samples picked for showing."""
        records = sample_records(step, self.details, self.scoring.scores, self.train, self.tokenizer)
        if records:
            write_samples(self.directory.samples_file(step), records)

    # --- evaluation ---

    def evaluate(self, step: int) -> None:
        """Held-out prompts; the best policy so far is exported."""
        if not self.heldout:
            return
        self.doing("evaluating")
        how = (resolve.evaluation_settings(self.config), self.publisher.version.number)
        found, failed = heldout_scores(self.rollouts, self.scorers, self.heldout, *how)
        self.forget_load()
        if failed:
            self.tell("reward", failed, step)
            self.note({"eval/failed": np.isnan(found["reward"]).sum()})
        scores = {name: values.tolist() for name, values in found.items()}
        if self.note_evaluation(step, scores) and step > 0 and self.config.checkpoint.export:
            self.export(step)

    def export(self, step: int) -> Path:
        """The tuned policy as a Hugging Face directory; the path."""
        target = self.directory.policy(step)
        self.learner.export(str(target), str(self.model_path), self.export_facts(step, self.publisher.version.digest))
        self.events.write("export", f"wrote {target.name}", step)
        return target

    def close(self) -> None:
        self.rollouts.close()
        self.scorers.close()
        super().close()

    # --- bookkeeping ---

    def save_extra(self, stage: Path) -> None:
        recorded: SampleBatch = get(self.recorded, self.config.rollout.timeout_s, "fetching the recorded samples")
        np.savez(stage / "recorded.npz", **{name: getattr(recorded, name) for name in SampleBatch.__slots__})

    def load_extra(self, checkpoint: Path) -> None:
        with np.load(checkpoint / "recorded.npz", allow_pickle=False) as arrays:
            self.recorded = put(SampleBatch(**{name: arrays[name] for name in SampleBatch.__slots__}))

    def note_rollout(self, stats: RolloutStats, seconds: float) -> None:
        self.role("rollout", "generate", seconds)
        self.note(
            {
                "response/length_mean": stats.length_mean,
                "response/length_max": float(stats.length_max),
                "response/truncated": stats.truncated / max(1, stats.samples),
                "staleness/mean": 0.0,
                "staleness/max": 0.0,
            }
        )


def once(sampling: SamplingSettings) -> SamplingSettings:
    return replace(sampling, samples_per_prompt=1)
