"""The rollout worker: prompts to samples over one engine, and the proof that the engine runs the weights it claims.

In: prompts (ids), sampling settings, weight buckets, a PolicyVersion. Out: a SampleBatch whose every token carries the
version it was decoded at, RolloutStats, log-probs for the probe. Left out: Ray (cluster wraps this class), threads
(server.py), text, rewards, and the judgement whether a probe's log-probs are good enough (whoever holds the
recorded ones decides).

States: EMPTY -adopt-> SERVING(N) -begin_publish-> RECEIVING(N+1) -finish_publish-> LOADED(N+1) -admit-> SERVING(N+1).
Anything refused on the way, and sleep, leaves BETWEEN, where only begin_publish goes on. Only SERVING decodes; SERVING
and LOADED can be probed; version numbers only grow. Generations stay open through a publish and go on after it.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from actors.engines.interface import EngineFailed, RolloutEngine
from actors.rollouts.generation import Generation, RolloutStats
from actors.rollouts.pace import Pace
from actors.rollouts.reception import PublishRefused, Reception
from actors.transports.interface import Link, Passing, Receiver
from actors.types import PolicyVersion, Prompt, SampleBatch, SamplingSettings


class WrongVersion(RuntimeError):
    """The worker serves another policy version than the caller counts on, or none."""


class RolloutStalled(EngineFailed):
    """No sequence gained a token within the deadline."""


class WorkerState(enum.Enum):
    EMPTY = "empty"
    SERVING = "serving"
    RECEIVING = "receiving"
    LOADED = "loaded"
    BETWEEN = "between"


class RolloutWorker:
    """One engine's owner. One caller, one thread; only `tokens_made` may be read from another."""

    def __init__(
        self,
        engine: RolloutEngine,
        *,
        receiver: Receiver | None = None,
        stall_timeout_s: float = 120.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """receiver: this end of the weights' transport; whole buckets without."""
        self._engine = engine
        self._receiver = receiver or Passing()
        self._stall_timeout_s = stall_timeout_s
        self._clock = clock
        self._state = WorkerState.EMPTY
        self._version: PolicyVersion | None = None
        """The last version admitted; serving it only in state SERVING."""
        self._loaded: PolicyVersion | None = None
        self._reception: Reception | None = None
        self._open: dict[str, Generation] = {}
        """Every running request's generation, by the request's id."""
        self._unread: dict[str, int] = {}
        """Prompt tokens of those that have no token yet."""
        self._serial = 0
        self._progress_at = 0.0
        self.engine_seconds = 0.0
        """Inside the engine's own steps: tokens_made over it is what the bare engine reaches."""
        self.tokens_made = 0
        """Response tokens since the start: who watches this worker from outside sees progress, or none."""
        self._steps = 0
        self._prompt_tokens = 0

    @property
    def state(self) -> WorkerState:
        return self._state

    @property
    def version(self) -> PolicyVersion | None:
        """The version that tokens are sampled from, None in any state but SERVING."""
        return self._version if self._state is WorkerState.SERVING else None

    @property
    def busy(self) -> bool:
        """Whether a sequence waits for its next token."""
        return bool(self._open)

    @property
    def pressure(self) -> float:
        """The share of the engine's cache that is held."""
        return self._engine.pressure()

    def pace(self, seconds: float) -> Pace:
        """Of its decode steps, which took `seconds`."""
        unread = self._unread.values()
        return Pace(
            steps=self._steps,
            seconds=seconds,
            tokens=self.tokens_made + self._prompt_tokens,
            running=len(self._open) - len(unread),
            unread=sum(unread),
            longest=max(unread, default=0),
        )

    # --- generating ---

    def submit(
        self,
        prompts: Sequence[Prompt],
        sampling: SamplingSettings,
        version_expected: int | None = None,
        carried: SampleBatch | None = None,
    ) -> Generation:
        """Queue every sample of these prompts that `carried` does not hold finished; `pump` then makes its tokens, once
        a version is served. WrongVersion if one is expected and it is not the one that is served now. Whatever is
        raised, no request stays behind."""
        if version_expected is not None and self._serving().number != version_expected:
            raise WrongVersion(
                f"version {version_expected} was asked for, the worker serves {self._serving().number}: publish first"
            )
        if not self._open:
            self._progress_at = self._clock()
        generation = Generation(self._serial, prompts, sampling, carried, self._clock())
        self._serial += 1
        queued: dict[str, int] = {}
        try:
            for request in generation.requests():
                self._engine.add_request(request)
                queued[request.id] = len(request.prompt_tokens)
        except BaseException:
            self._engine.abort(list(queued))
            raise
        self._unread |= queued
        self._open |= dict.fromkeys(queued, generation)
        return generation

    def pump(self) -> list[Generation]:
        """One decode step of everything queued or running; the generations that it completed. RolloutStalled when no
        sequence has gained a token for too long; an engine's own error comes through. Neither leaves a request."""
        version = self._serving().number
        began = self._clock()
        try:
            outputs = self._engine.step()
        except BaseException:
            self.interrupt()
            raise
        self.engine_seconds += self._clock() - began
        self._steps += 1
        made, done = 0, []
        for output in outputs:
            generation = self._open[output.request_id]
            generation.absorb(output, version)
            self._prompt_tokens += self._unread.pop(output.request_id, 0)
            made += len(output.token_ids)
            if output.finish_reason is not None:
                del self._open[output.request_id]
                if generation.done:
                    done.append(generation)
        self.tokens_made += made
        self._watch(made)
        return done

    def _watch(self, made: int) -> None:
        now = self._clock()
        if made:
            self._progress_at = now
        elif self._open and now - self._progress_at > self._stall_timeout_s:
            waiting = [request_id.rpartition("/")[0] for request_id in self._open]
            self.interrupt()
            raise RolloutStalled(
                f"no token for {now - self._progress_at:.0f} s (stall_timeout_s {self._stall_timeout_s:g}) with "
                f"{len(waiting)} requests waiting: {', '.join(waiting[:8])}"
            )

    def interrupt(self, wanted: Sequence[Generation] | None = None) -> list[Generation]:
        """Stop these generations, or all, where they stand: they are done, their unfinished samples end with ABORT.
        Those that were still open."""
        mine = {id(g) for g in wanted} if wanted is not None else None
        stopped = {i: g for i, g in self._open.items() if mine is None or id(g) in mine}
        self._engine.abort(list(stopped))
        for request_id in stopped:
            del self._open[request_id]
            self._unread.pop(request_id, None)
        found = list({id(g): g for g in stopped.values()}.values())
        for generation in found:
            generation.interrupt()
        return found

    def result(self, generation: Generation) -> tuple[SampleBatch, RolloutStats]:
        return generation.result(self._clock())

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
        generation = self.submit(prompts, sampling, version_expected)
        try:
            while not generation.done:
                self.pump()
                if between_steps is not None and not generation.done:
                    between_steps()
        finally:
            self.interrupt([generation])
        return self.result(generation)

    # --- weights ---

    def adopt(self, version: PolicyVersion) -> None:
        """Serve the weights that the engine loaded from disk at its start, which the caller knows to be `version`."""
        self._require(WorkerState.EMPTY)
        self._version, self._state = version, WorkerState.SERVING

    def sleep(self, _: None = None) -> None:
        """Let the engine give up its memory; the next publish wakes it."""
        self._require(WorkerState.SERVING)
        self._engine.sleep()
        self._state = WorkerState.BETWEEN

    def begin_publish(self, number: int) -> None:
        """Start receiving version `number`; from any state, so that a failed publish can be repeated."""
        if self._version is not None and number <= self._version.number:
            raise PublishRefused(f"version {number} after version {self._version.number}: versions only grow")
        self._state = WorkerState.BETWEEN
        self._engine.start_update()
        self._reception, self._loaded = Reception(number), None
        self._state = WorkerState.RECEIVING

    def connect(self, link: Link) -> None:
        """Join the group that buckets come through."""
        self._receiver.connect(link)

    def receive(self, parcel: Any) -> None:
        """Open what came of one bucket, check it, and load it; whole buckets in any order."""
        reception = self._leave_receiving()
        bucket = self._receiver.open(parcel)
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
        self._progress_at = self._clock()

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
