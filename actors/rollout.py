"""The rollout worker: prompts to samples over one engine, and the proof that the engine runs the weights it claims.

In: prompts (ids), sampling settings, weight buckets, a PolicyVersion. Out: a SampleBatch whose every token carries the
version it was decoded at, RolloutStats, log-probs for the probe. Left out: Ray (cluster wraps this class), text,
rewards, and the judgement whether a probe's log-probs are good enough (whoever holds the recorded ones decides).

States: EMPTY -adopt-> SERVING(N) -begin_publish-> RECEIVING(N+1) -finish_publish-> LOADED(N+1) -admit-> SERVING(N+1).
Anything refused on the way leaves BETWEEN, where only begin_publish goes on. Only SERVING generates; SERVING and LOADED
can be probed; version numbers only grow.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from actors.engine import Request, RolloutEngine, StepOutput
from actors.reception import PublishRefused, Reception
from actors.types import (
    FinishReason,
    PolicyVersion,
    Prompt,
    Sample,
    SampleBatch,
    SamplingSettings,
    WeightBucket,
    sample_seed,
)


class WrongVersion(RuntimeError):
    """The worker serves another policy version than the caller counts on, or none."""


class RolloutStalled(RuntimeError):
    """No sequence gained a token within the deadline."""


class WorkerState(enum.Enum):
    EMPTY = "empty"
    SERVING = "serving"
    RECEIVING = "receiving"
    LOADED = "loaded"
    BETWEEN = "between"


@dataclass(frozen=True, slots=True)
class RolloutStats:
    """One `generate` call in numbers. prompt_tokens counts a prompt once, whatever its number of samples; logprob_sum
    is over response tokens, of the sampling distribution (nats)."""

    seconds: float
    samples: int
    prompt_tokens: int
    response_tokens: int
    truncated: int
    length_max: int
    logprob_sum: float

    @property
    def length_mean(self) -> float:
        return self.response_tokens / max(self.samples, 1)

    @property
    def logprob_mean(self) -> float:
        """Mean log-prob of a response token; at temperature 1 minus this is an unbiased estimate of the entropy."""
        return self.logprob_sum / max(self.response_tokens, 1)

    @staticmethod
    def merge(stats: Sequence[RolloutStats]) -> RolloutStats:
        """Of workers that ran side by side: the slowest one's seconds, everything else added up."""
        return RolloutStats(
            seconds=max(s.seconds for s in stats),
            samples=sum(s.samples for s in stats),
            prompt_tokens=sum(s.prompt_tokens for s in stats),
            response_tokens=sum(s.response_tokens for s in stats),
            truncated=sum(s.truncated for s in stats),
            length_max=max(s.length_max for s in stats),
            logprob_sum=sum(s.logprob_sum for s in stats),
        )


@dataclass(slots=True)
class _Growing:
    """A sample in the making."""

    prompt: Prompt
    sample_index: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    def absorb(self, output: StepOutput, version: int) -> None:
        if output.token_ids and (not self.spans or self.spans[-1][1] != version):
            self.spans.append((len(self.tokens), version))
        self.tokens.extend(output.token_ids)
        self.logprobs.extend(output.logprobs)
        self.finish_reason = output.finish_reason

    def sample(self) -> Sample:
        assert self.finish_reason is not None
        return Sample(
            group=self.prompt.group,
            prompt_id=self.prompt.id,
            sample_index=self.sample_index,
            prompt_tokens=np.array(self.prompt.token_ids, np.int32),
            token_ids=np.array(self.tokens, np.int32),
            logprobs=np.array(self.logprobs, np.float32),
            turns=np.zeros(len(self.tokens), np.int16),
            spans=tuple(self.spans),
            finish_reason=self.finish_reason,
        )


class RolloutWorker:
    """One engine's owner. One caller, one thread; only `tokens_made` may be read from another."""

    def __init__(
        self, engine: RolloutEngine, *, stall_timeout_s: float = 120.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._engine = engine
        self._stall_timeout_s = stall_timeout_s
        self._clock = clock
        self._state = WorkerState.EMPTY
        self._version: PolicyVersion | None = None
        """The last version admitted; serving it only in state SERVING."""
        self._loaded: PolicyVersion | None = None
        self._reception: Reception | None = None
        self.tokens_made = 0
        """Response tokens since the start: who watches this worker from outside sees progress, or none."""

    @property
    def state(self) -> WorkerState:
        return self._state

    @property
    def version(self) -> PolicyVersion | None:
        """The version that `generate` samples from, None in any state but SERVING."""
        return self._version if self._state is WorkerState.SERVING else None

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: SamplingSettings,
        version_expected: int,
        between_steps: Callable[[], None] | None = None,
    ) -> tuple[SampleBatch, RolloutStats]:
        """`samples_per_prompt` samples of each prompt, rows in the prompts' order, then by sample index. Every request
        is queued before the first decode step. `between_steps` runs after each step and may publish and admit a new
        version: what is decoded afterwards is stamped with it. Whatever is raised, no request stays behind."""
        if self._serving().number != version_expected:
            raise WrongVersion(
                f"version {version_expected} was asked for, the worker serves {self._serving().number}: publish first"
            )
        if len({p.group for p in prompts}) < len(prompts):
            raise ValueError("two prompts have the same group: a group is one admission, send it once")
        begin = self._clock()
        growing = {
            f"{prompt.group}/{index}": _Growing(prompt, index)
            for prompt in prompts
            for index in range(sampling.samples_per_prompt)
        }
        try:
            for request_id, row in growing.items():
                self._engine.add_request(_request(request_id, row, sampling))
            self._decode(growing, between_steps)
        finally:
            self._engine.abort([i for i, row in growing.items() if row.finish_reason is None])
        batch = SampleBatch.from_samples([row.sample() for row in growing.values()])
        return batch, _stats(batch, self._clock() - begin)

    def _decode(self, growing: dict[str, _Growing], between_steps: Callable[[], None] | None) -> None:
        unfinished = len(growing)
        progress_at = self._clock()
        while unfinished:
            version = self._serving().number
            made = 0
            for output in self._engine.step():
                row = growing[output.request_id]
                row.absorb(output, version)
                made += len(output.token_ids)
                unfinished -= output.finish_reason is not None
            self.tokens_made += made
            now = self._clock()
            if made:
                progress_at = now
            elif unfinished and now - progress_at > self._stall_timeout_s:
                waiting = [i for i, row in growing.items() if row.finish_reason is None]
                raise RolloutStalled(
                    f"no token for {now - progress_at:.0f} s (stall_timeout_s {self._stall_timeout_s:g}) with "
                    f"{len(waiting)} requests waiting: {', '.join(waiting[:8])}"
                )
            if between_steps is not None and unfinished:
                between_steps()

    def adopt(self, version: PolicyVersion) -> None:
        """Serve the weights that the engine loaded from disk at its start, which the caller knows to be `version`."""
        self._require(WorkerState.EMPTY)
        self._version, self._state = version, WorkerState.SERVING

    def begin_publish(self, number: int) -> None:
        """Start receiving version `number`; from any state, so that a failed publish can be repeated."""
        if self._version is not None and number <= self._version.number:
            raise PublishRefused(f"version {number} after version {self._version.number}: versions only grow")
        self._state = WorkerState.BETWEEN
        self._engine.start_update()
        self._reception, self._loaded = Reception(number), None
        self._state = WorkerState.RECEIVING

    def receive(self, bucket: WeightBucket) -> None:
        """Check one bucket, in any order, and load it."""
        reception = self._leave_receiving()
        reception.check(bucket)
        self._engine.load_bucket(bucket)
        self._state = WorkerState.RECEIVING

    def finish_publish(self, version: PolicyVersion) -> None:
        """Prove identity (every bucket came, and their digest is the version's), then make the weights effective."""
        self._leave_receiving().prove(version)
        self._engine.finish_update()
        self._loaded, self._state = version, WorkerState.LOADED

    def probe(self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """The engine's log-probs (temperature 1) of recorded responses: the proof that the weights are applied."""
        self._require(WorkerState.SERVING, WorkerState.LOADED)
        return self._engine.logprobs(prompts, responses)

    def admit(self, version: PolicyVersion) -> None:
        """Take traffic at `version`, whose probe was found good."""
        self._require(WorkerState.LOADED)
        if version != self._loaded:
            raise PublishRefused(f"{version} cannot be admitted, the worker holds {self._loaded}")
        self._version, self._loaded, self._state = version, None, WorkerState.SERVING

    def close(self) -> None:
        self._state = WorkerState.EMPTY
        self._engine.close()

    def _serving(self) -> PolicyVersion:
        if self._state is not WorkerState.SERVING or self._version is None:
            raise WrongVersion(f"the worker is {self._state.value}, it serves no version: publish one and admit it")
        return self._version

    def _leave_receiving(self) -> Reception:
        """The buckets so far, with the worker between versions until the caller's check has passed."""
        self._require(WorkerState.RECEIVING)
        assert self._reception is not None
        self._state = WorkerState.BETWEEN
        return self._reception

    def _require(self, *states: WorkerState) -> None:
        if self._state not in states:
            allowed = " or ".join(s.value for s in states)
            raise WrongVersion(f"the worker is {self._state.value}, this needs it {allowed}")


def _request(request_id: str, row: _Growing, sampling: SamplingSettings) -> Request:
    return Request(
        id=request_id,
        prompt_tokens=row.prompt.token_ids,
        temperature=sampling.temperature,
        max_tokens=sampling.max_tokens,
        seed=sample_seed(sampling.seed, row.prompt.group, row.sample_index),
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_tokens=sampling.min_tokens,
        stop=sampling.stop,
    )


def _stats(batch: SampleBatch, seconds: float) -> RolloutStats:
    lengths = batch.lengths
    return RolloutStats(
        seconds=seconds,
        samples=len(batch),
        prompt_tokens=len(batch.prompt_tokens),
        response_tokens=int(lengths.sum()),
        truncated=int((batch.finish_reasons == FinishReason.LENGTH).sum()),
        length_max=int(lengths.max(initial=0)),
        logprob_sum=float(batch.logprobs.sum(dtype=np.float64)),
    )
