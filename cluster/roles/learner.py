"""A learner rank: what runs inside its process. Knows nothing of Ray: `cluster/workers` wraps it in an actor.

In: settings, then columns of a step. Out: columns, metrics, weight buckets, files. Left out: who calls whom and when.
Heavy imports stand inside the methods, so that importing this file (the driver does) costs nothing.
"""

from __future__ import annotations

import functools
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from actors.types import SampleBatch, WeightBucket, WeightSummary
from cluster.roles.stacks import tell_when_asked
from cluster.roles.step_inputs import step_inputs
from learners.engines.settings import ModelSettings
from learners.methods.method import LearnerSettings, Method, TokenColumn, Training, UpdateResult
from learners.methods.presets import PreferenceSettings, RewardModelSettings

if TYPE_CHECKING:
    import torch
    from torch import nn

    from actors.models.reference import ReferenceScorer
    from learners.base import LearnerBase
    from learners.critic import CriticLearner
    from learners.engines.interface import TrainEngine

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class LearnerSpec:
    """What one learner group trains. Any of policy (the model that is tuned, a reward model too) and critic may be
    absent: the other group has it; the reference lives with the policy, and is the policy with its adapter off where it
    has one (reference_path None). temperature: of sampling, which training
    divides logits by too. device: "cpu" or "cuda". transport: how weights go to engines (actors/transports).
    gives_back: engines that sleep wait for the GPU memory that torch keeps for the next update. saves_later:
    checkpoints are written beside training, from a copy."""

    trains: Training
    policy: LearnerSettings | None
    critic: LearnerSettings | None
    reference_path: str | None
    device: str
    timeout_s: float
    temperature: float = 1.0
    transport: str = "object_store"
    weights_timeout_s: float = 600.0
    gives_back: bool = False
    saves_later: bool = False


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("", 0))
        return int(s.getsockname()[1])


class LearnerRole:
    """One rank: the policy, the critic, or both, and the frozen reference."""

    def __init__(self, spec: LearnerSpec, rank: int, ranks: int) -> None:
        tell_when_asked()
        self._spec, self._rank, self._ranks = spec, rank, ranks
        self._policy: LearnerBase | None = None
        self._critic: CriticLearner | None = None
        self._reference: ReferenceScorer | None = None

    @property
    def policy(self) -> Any:
        """The learner that the spec's method asks for; which verbs it has follows from the method."""
        return _built(self._policy, "policy")

    @property
    def critic(self) -> CriticLearner:
        return _built(self._critic, "critic")

    def rendezvous(self) -> tuple[str, int]:
        """Where rank 0 can be met."""
        return socket.gethostbyname(socket.gethostname()), free_port()

    def build(self, address: str, port: int) -> dict[str, float]:
        """Join the group and load the models; seconds spent, by phase."""
        start = time.monotonic()
        import torch

        from learners.engines.process_group import backend_for, init_process_group

        spec = self._spec
        torch.manual_seed(0)
        if spec.device == "cpu":
            torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        device = torch.device(spec.device)
        init_process_group(self._rank, self._ranks, address, port, backend_for(device), spec.timeout_s)
        imported = time.monotonic()
        if spec.policy is not None:
            self._policy = self._build_policy(spec.policy, device)
            if spec.reference_path is not None:
                self._reference = self._build_reference(spec.reference_path, spec.policy)
        if spec.critic is not None:
            self._critic = self._build_critic(spec.critic, device)
        return {"import_s": imported - start, "build_s": time.monotonic() - imported}

    def _build_policy(self, settings: LearnerSettings, device: torch.device) -> LearnerBase:
        from learners.engines.models import load_policy, load_reward_model
        from learners.policy import PolicyLearner
        from learners.preference import PreferenceLearner
        from learners.reward import RewardLearner
        from learners.supervised import SupervisedLearner

        trains, update = self._spec.trains, settings.update
        if isinstance(trains, RewardModelSettings):
            return RewardLearner(_engine(settings, load_reward_model, device), trains, update)
        engine = _engine(settings, load_policy, device)
        if isinstance(trains, Method):
            return PolicyLearner(engine, trains, update)
        if isinstance(trains, PreferenceSettings):
            return PreferenceLearner(engine, trains, update, self._spec.temperature)
        return SupervisedLearner(engine, update)

    def _build_critic(self, settings: LearnerSettings, device: torch.device) -> CriticLearner:
        from learners.critic import CriticLearner
        from learners.engines.models import load_critic

        if not isinstance(self._spec.trains, Method):
            raise TypeError(f"a critic is of a policy-gradient method, not of {type(self._spec.trains).__name__}")
        return CriticLearner(_engine(settings, load_critic, device), self._spec.trains, settings.update)

    def _build_reference(self, path: str, settings: LearnerSettings) -> ReferenceScorer:
        from actors.models.reference import ReferenceScorer

        return ReferenceScorer(
            path,
            dtype=settings.model.dtype,
            attention=settings.model.attention,
            temperature=self._spec.temperature,
            max_tokens=settings.update.micro_batch_tokens,
            device=self._spec.device,
            trust_remote_code=settings.model.trust_remote_code,
        )

    # --- one step ---

    def reference_logprobs(self, *chunks: SampleBatch) -> TokenColumn:
        if self._reference is None:
            return self.policy.reference_logprobs(SampleBatch.concat(chunks))
        slots, values = self._reference.logprobs(SampleBatch.concat(chunks), rank=self._rank, ranks=self._ranks)
        return TokenColumn(slots, values)

    def policy_logprobs(self, temperature: float | None, *chunks: SampleBatch) -> TokenColumn:
        found = self.policy.logprobs(SampleBatch.concat(chunks), temperature)
        if self._spec.gives_back:
            import torch

            # A publish begins with this call, and wakes the engines next.
            torch.cuda.empty_cache()
        return found

    def values(self, *chunks: SampleBatch) -> TokenColumn:
        return self.critic.values(SampleBatch.concat(chunks))

    def update_policy(self, show_rows: tuple[int, ...], layout: Mapping[str, Any], *columns: Any) -> UpdateResult:
        return self.policy.update(step_inputs(layout, columns), show_rows)

    def update_critic(self, layout: Mapping[str, Any], *columns: Any) -> UpdateResult:
        return self.critic.update(step_inputs(layout, columns))

    def row_rewards(self, layout: Mapping[str, Any], *columns: Any) -> np.ndarray:
        return self.policy.row_rewards(step_inputs(layout, columns))

    def row_scores(self, *chunks: SampleBatch) -> TokenColumn:
        return self.policy.row_scores(SampleBatch.concat(chunks))

    def row_logprobs(self, layout: Mapping[str, Any], *columns: Any) -> np.ndarray:
        return self.policy.row_logprobs(step_inputs(layout, columns))

    def pick(self, rows: Sequence[int], *chunks: SampleBatch) -> SampleBatch:
        """These rows, two by two as the chosen (sample index 0) and the rejected (1) of a pair."""
        samples = SampleBatch.concat(chunks).take(rows)
        return replace(samples, sample_indices=np.arange(len(samples), dtype=np.int32) % 2)

    def kto_baseline(self, layout: Mapping[str, Any], *columns: Any) -> float:
        return self.policy.kto_baseline(step_inputs(layout, columns))

    # --- weights, state, files ---

    def link(self, size: int) -> Any:
        """Where engines meet this rank, for weights that do not come through the object store; None where they need
        not."""
        return self._sender.link(size)

    def weights(self, max_bytes: int) -> Iterator[WeightBucket | WeightSummary | Any]:
        """See LearnerBase.weights."""
        yield from self.policy.weights(max_bytes, self._sender)

    def release_weights(self) -> None:
        """Every engine has the version that was made last."""
        self._sender.release()

    @functools.cached_property
    def _sender(self) -> Any:
        from actors.transports import sender_for

        spec = self._spec
        return sender_for(spec.transport, spec.device, spec.weights_timeout_s) if self._rank == 0 else None

    def copy_bytes_per_s(self, nbytes: int) -> float:
        """The best of three copies of so many bytes."""
        source, target = np.ones(nbytes, np.uint8), np.empty(nbytes, np.uint8)
        best = float("inf")
        for _ in range(3):
            began = time.perf_counter()
            np.copyto(target, source)
            best = min(best, time.perf_counter() - began)
        return nbytes / best

    def save(self, directory: str) -> None:
        """Write the state into `directory`; where the spec says so a thread does, from a copy."""
        from learners.engines.saving import write_now

        if self._spec.saves_later:
            self._writer.begin()
        write = self._writer if self._spec.saves_later else write_now
        for name, learner in self._learners():
            (Path(directory) / name).mkdir(parents=True, exist_ok=True)
            learner.save(Path(directory) / name, write)

    def saved(self, directory: str) -> dict[str, Any] | None:
        """Size and hash of this rank's files by their path in `directory`; None while one is being written."""
        written = self._writer.written() if self._spec.saves_later else {}
        if written is None:
            return None
        return {path.relative_to(directory).as_posix(): facts for path, facts in written.items()}

    @functools.cached_property
    def _writer(self) -> Any:
        from learners.engines.saving import LaterWriter

        return LaterWriter()

    def load(self, directory: str) -> None:
        for name, learner in self._learners():
            learner.load(Path(directory) / name)

    def export(self, directory: str, source: str, facts: Mapping[str, Any]) -> None:
        from learners.export import export_adapter, export_policy

        settings = self._spec.policy
        lora = None if settings is None else settings.model.lora
        if lora is not None and lora.export == "adapter":
            export_adapter(self.policy, Path(directory), Path(source), facts, lora)
        else:
            export_policy(self.policy, Path(directory), Path(source), facts)

    def dump(self, path: str, layout: Mapping[str, Any], *columns: Any) -> None:
        """Save a step's inputs for a look at what was not finite."""
        from learners.export import dump_inputs

        dump_inputs(Path(path), step_inputs(layout, columns))

    def _learners(self) -> list[tuple[str, LearnerBase | CriticLearner]]:
        pairs = (("policy", self._policy), ("critic", self._critic))
        return [(name, learner) for name, learner in pairs if learner is not None]


def _built(learner: T | None, name: str) -> T:
    if learner is None:
        raise RuntimeError(f"this rank has no {name}: its group trains none, or `build` has not ended")
    return learner


def _engine(
    settings: LearnerSettings, load_model: Callable[[ModelSettings], nn.Module], device: torch.device
) -> TrainEngine:
    if settings.backend == "torch":
        from learners.engines.torch_engine import TorchEngine

        return TorchEngine(
            load_model(settings.model), optimizer=settings.optimizer, dtype=settings.model.dtype, device=device
        )
    from learners.engines.deepspeed_engine import DeepSpeedEngine, construction_context

    with construction_context(settings.zero, settings.model.dtype):
        model = load_model(settings.model)
    return DeepSpeedEngine(
        model, zero=settings.zero, optimizer=settings.optimizer, dtype=settings.model.dtype, device=device
    )
