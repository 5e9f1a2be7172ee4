"""A policy-gradient run whose generation runs ahead of its learning: the verbs of cluster/one_step_off.py and
cluster/asynchronous.py.

In: a PolicyGradientJob's workers and a schedule. Out: batches with their staleness, publishes between decode steps. On
a resume, prompts that were under way at the commit are generated again, under the weights of the commit; where only the
learner was lost, by the asynchronous schedule, while it is built again. Left out: the order of a step, the stream
itself (cluster/training/parts/stream.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from actors.engines.probe import PROBE_TOKENS, worth_recording
from actors.rollouts.generation import RolloutStats
from actors.types import SampleBatch
from cluster.config import resolve
from cluster.errors import RunFailed
from cluster.experience.batch import StepBatch, Wave
from cluster.experience.columns import Ref, StepColumns
from cluster.inputs.online import OnlineInputs
from cluster.pool.members.ticket import Finished
from cluster.pool.pool import samples_of
from cluster.run.records.length_bias import length_bias
from cluster.training.parts.logbook import Run
from cluster.training.parts.online_workers import OnlineWorkers
from cluster.training.parts.stream import Stream
from cluster.training.policy_gradient import PolicyGradientJob
from cluster.training.recovery import step_of
from cluster.workers import get, put

WATCHED = 8
"""Batches that may be under way, times this: the prompts over which the lengths of what is trained are watched."""


class StreamingJob(PolicyGradientJob):
    """Workers and verbs of one run whose samples may be some versions old."""

    def __init__(self, run: Run, workers: OnlineWorkers, inputs: OnlineInputs, tokenizer: Any) -> None:
        super().__init__(run, workers, inputs, tokenizer)
        self.max_staleness = resolve.max_staleness(self.config)
        self._generated: dict[str, float] = {}
        self._biased = False
        self._stream = self._new_stream()

    def begin(self, commit: Path | None) -> None:
        super().begin(commit)
        self._open_stream()
        self._send_again()

    def rebuild(self, commit: Path | None) -> None:
        before = self._stream
        super().rebuild(commit)
        if self._stream is before:
            self._open_stream()
        self._send_again()

    def start_learner_again(self, commit: Path | None) -> None:
        """Asynchronous samples may be of any weights whose log-probs are recorded: what the commit had under way is
        made meanwhile. The engines' weights are of a step that will not count, ahead of the commit by at most as many
        steps as lie between two; the correction weighs what they made. By number they are one version older than what
        the commit's weights are published as: so many prompts as can be in time all the same."""
        kind = self.config.rollout.schedule.kind
        if commit is None or kind != "asynchronous" or self.publisher.broken_off:
            super().start_learner_again(commit)
            return
        self.forget_load()
        self.ledger.restore(commit / "ledger.sqlite")
        self._open_stream()
        in_time = self.max_staleness * self.config.rollout.prompts_per_step
        self._send(step_of(commit) - 1, self.ledger.in_flight()[:in_time])
        super().start_learner_again(commit)
        made = self.elastic.load().tokens
        self.events.write("meanwhile", f"{made} tokens were made while the learner was built again")

    def _send_again(self) -> None:
        """What the commit had under way and was not sent yet: of a stream that nothing was taken from."""
        self._send(self.state.step, self.ledger.in_flight()[self._stream.under_way :])

    def _send(self, step: int, rows: Sequence[tuple[int, int]]) -> None:
        self._stream.send(step, self.train.prompts([(row, position) for row, position in rows]))

    def _open_stream(self) -> None:
        self._stream = self._new_stream()
        self._biased = False
        self.forget_load()

    def _new_stream(self) -> Stream:
        return Stream(
            self.rollouts,
            resolve.admission(self.config),
            self.sampling,
            next_prompts=self.admit,
            drop=self.ledger.dropped,
            recorded=self.config.weights.probe_samples,
            timeout_s=self.config.rollout.timeout_s,
        )

    def forget_load(self) -> None:
        super().forget_load()
        self._generated |= self._generating()  # one that rests meanwhile comes back

    def _generating(self) -> dict[str, float]:
        """Seconds that each worker has spent generating since it began."""
        return {name: pulse.seconds.generate for name, pulse in self.rollouts.pulses().items()}

    def run_ahead(self, flat: int = 0) -> None:
        """Admit what the bound allows, as far as the run has steps left. flat: groups of the running step that will be
        dropped, which others replace."""
        in_flight = self.ledger.counts().in_flight
        self._stream.admit(version=self.state.step, in_flight=in_flight, flat=flat, steps=self.config.steps)

    def take(self, batch: StepBatch) -> Wave:
        """The oldest samples of as many prompts as the batch lacks, none too old."""
        if batch.flat:
            self.run_ahead(len(batch.flat))
        taken = self._stream.take(self.state.step, batch.lacking)
        samples = samples_of(taken)
        self.recorded = self._recorded_of(taken)
        generated = self._generating()
        spent = [seconds - self._generated.get(name, 0.0) for name, seconds in generated.items()]
        self._generated |= generated
        return Wave(samples, None, sum(spent) / max(1, len(spent)))

    def _recorded_of(self, taken: Sequence[Finished]) -> Ref:
        """A ticket alone has too few tokens for a probe: some of several, end to end."""
        refs, tokens = [], 0
        for finished in taken:
            if tokens < PROBE_TOKENS:
                refs.append(finished.recorded)
                tokens += finished.stats.response_tokens
        batch = SampleBatch.concat(get(refs, self.config.rollout.timeout_s, "fetching the recorded samples"))
        return put(batch.take(worth_recording(batch, self.config.weights.probe_samples)))

    def finish_step(self, step: int) -> None:
        self._watch_lengths(step)
        super().finish_step(step)

    def _watch_lengths(self, step: int) -> None:
        """Over a few times what may be under way; an alarm when a bias begins, and a word when it has gone."""
        self.ledger.measured(self._stream.take_lengths())
        window = WATCHED * (self.max_staleness + 1) * self.config.rollout.prompts_per_step
        bias = length_bias(*self.ledger.recent_lengths(window))
        if bias is None:
            return
        self.note({"response/length_bias": bias.share})
        if bias.alarm != self._biased:
            self._biased = bias.alarm
            text = (
                f"{bias}; raise rollout.schedule.max_staleness" if bias.alarm else "trained lengths are as made again"
            )
            self.tell("length_bias", text, step)

    def hold(self) -> None:
        """Stop what is being generated where it stands."""
        self.rollouts.hold()

    def go_on(self) -> None:
        self.rollouts.go_on()

    def evaluate(self, step: int) -> None:
        self.rollouts.go_on()
        super().evaluate(step)

    def settle(self) -> None:
        self._stream.settle()

    def score(self, step: int, batch: StepBatch) -> StepColumns:
        columns = super().score(step, batch)
        self._note_staleness(batch.samples.stats)
        return columns

    def _note_staleness(self, stats: Sequence[RolloutStats]) -> None:
        """In versions, by token. Past the bound is a bug of admission, and nothing is learned from it."""
        version, merged = self.publisher.version.number, RolloutStats.merge([s for s in stats if s.response_tokens])
        oldest = version - merged.oldest
        if oldest > self.max_staleness:
            raise RunFailed(f"a sample is {oldest} versions old and the bound is {self.max_staleness}: this is a bug")
        mean = version - merged.version_sum / max(1, merged.response_tokens)
        self.note({"staleness/mean": mean, "staleness/max": float(oldest)})
