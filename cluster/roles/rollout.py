"""A rollout worker: what runs inside its process. Knows nothing of Ray: `cluster/workers/rollout.py` wraps it in an
actor.

In: tickets' parts, weight buckets, versions, as coroutine calls. Out: columns and statistics. Calls about weights carry
a turn and take effect in the order of turns, whatever order they arrive in. Left out: the engine and its thread
(actors), who calls when (the pool).
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.metadata
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from actors.engines.interface import EngineSettings
from actors.engines.probe import worth_recording
from actors.types import Prompt, SampleBatch, SamplingSettings
from cluster.pool.members.handle import WorkerIdentity, WorkerPulse
from cluster.roles.stacks import tell_when_asked

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "merges.txt")


@dataclass(frozen=True, slots=True)
class RolloutSpec:
    """kind: the engine, "vllm" or "torch". device: "cpu" or "cuda". transport: how weights come (actors/transports)."""

    engine: EngineSettings
    kind: str
    device: str
    transport: str
    stall_timeout_s: float
    weights_timeout_s: float


class RolloutRole:
    """A rollout worker: an engine in its thread, and the policy version it holds."""

    def __init__(self, spec: RolloutSpec) -> None:
        tell_when_asked()
        from actors.rollouts.server import RolloutServer
        from actors.rollouts.worker import RolloutWorker
        from actors.transports import receiver_for

        self._settings, self._kind = spec.engine, spec.kind
        self._server = RolloutServer(
            lambda: RolloutWorker(
                _rollout_engine(spec.engine, spec.kind),
                receiver=receiver_for(spec.transport, spec.device, spec.weights_timeout_s),
                stall_timeout_s=spec.stall_timeout_s,
            )
        )
        self._owner = ""
        self._next = 0
        self._early: dict[int, tuple[str, Any, Future[Any]]] = {}

    async def own(self, owner: str) -> WorkerIdentity:
        """From now on it works for this owner alone; what an owner before had under way is dropped, and what comes of
        it late is refused."""
        self._owner, self._next, self._early = owner, 0, {}
        await self.interrupt()
        return self._identity()

    def _identity(self) -> WorkerIdentity:
        folder = Path(self._settings.model_path)
        package = {"vllm": "vllm", "torch": "transformers"}[self._kind]
        return WorkerIdentity(
            engine=f"{self._kind} {_version(package)}",
            dtype=self._settings.dtype,
            tokenizer=_digest([folder / name for name in TOKENIZER_FILES]),
            model=_digest([folder / "config.json"]),
        )

    async def generate(
        self,
        owner: str,
        prompts: Sequence[Prompt],
        carried: SampleBatch | None,
        sampling: SamplingSettings,
        version: int | None,
        recorded: int,
    ) -> tuple[SampleBatch, SampleBatch, Any]:
        """(samples, some of them for a probe, at least `recorded`; statistics)."""
        self._refuse_other(owner)
        batch, stats = await asyncio.wrap_future(self._server.generate(prompts, sampling, version, carried))
        return batch, batch.take(worth_recording(batch, recorded) if recorded else []), stats

    async def interrupt(self) -> int:
        return await asyncio.wrap_future(self._server.interrupt())

    async def in_turn(self, owner: str, turn: int, verb: str, argument: Any) -> Any:
        """Calls about weights (adopt, sleep, begin_publish, connect, receive, finish_publish, probe, admit), each when
        all calls of the owner's earlier turns have begun."""
        self._refuse_other(owner)
        answer: Future[Any] = Future()
        answer.set_running_or_notify_cancel()  # who stops waiting cancels nothing
        self._early[turn] = (verb, argument, answer)
        while self._next in self._early:
            name, given, waiting = self._early.pop(self._next)
            self._next += 1
            call = probe_logprobs if name == "probe" else _verb(name)
            _chain(self._server.call(_with(call, given)), waiting)
        return await asyncio.wrap_future(answer)

    def _refuse_other(self, owner: str) -> None:
        if owner != self._owner:
            raise RuntimeError("the call is of a driver that was replaced meanwhile")

    async def pulse(self) -> WorkerPulse:
        return pulse_of(self._server)

    def close(self) -> None:
        self._server.close()


def pulse_of(server: Any) -> WorkerPulse:
    """How a RolloutServer is doing; its spans are told once."""
    seconds, spans = replace(server.seconds), server.spans.take()
    return WorkerPulse(server.tokens_made, server.open, server.pressure, seconds, spans, server.pace)


def _with(call: Callable[[Any, Any], Any], given: Any) -> Callable[[Any], Any]:
    return lambda worker: call(worker, given)


def _verb(name: str) -> Any:
    return lambda worker, given: getattr(worker, name)(given)


def probe_logprobs(worker: Any, batch: SampleBatch) -> np.ndarray:
    """The engine's log-probs of recorded samples, float32 on the batch's T axis."""
    prompts = [batch.prompt_of(row).tolist() for row in range(len(batch))]
    responses = [batch.response_of(row).tolist() for row in range(len(batch))]
    return np.concatenate(worker.probe(prompts, responses)).astype(np.float32)


def _chain(source: Future[Any], target: Future[Any]) -> None:
    def copy(done: Future[Any]) -> None:
        error = done.exception()
        if error is not None:
            target.set_exception(error)
        else:
            target.set_result(done.result())

    source.add_done_callback(copy)


def _digest(files: Sequence[Path]) -> str:
    found = hashlib.sha256()
    for file in files:
        if file.is_file():
            found.update(file.name.encode() + file.read_bytes())
    return found.hexdigest()[:16]


def _version(package: str) -> str:
    for name in (package, f"{package}-cpu"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"


def _rollout_engine(settings: EngineSettings, kind: str) -> Any:
    if kind == "torch":
        from actors.engines.torch_engine import TorchEngine

        return TorchEngine(settings)
    from actors.engines.vllm.engine import VllmEngine

    return VllmEngine(settings)
