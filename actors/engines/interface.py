"""The contract between a rollout worker and whatever generates tokens.

Two implementations pass the same contract tests (tests/contracts): `vllm.engine.VllmEngine`, the real one, and
`torch_engine.TorchEngine`, a plain transformers twin. The step loop is the caller's, so deadlines, aborts and
weight updates between two decode steps need no thread and no child process.

Weights move in four phases: `start_update`, `load_bucket` for each bucket, `finish_update`; after `start_update` and
until `finish_update` returned, the engine is at no version and must not `step` (it raises EngineBetweenVersions).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from actors.models.lora import LoraSettings
from actors.transports.interface import DeviceBucket
from actors.types import FinishReason, WeightBucket


class EngineBetweenVersions(RuntimeError):
    """The engine holds weights of no known version; finish an update before generating."""


class EngineFailed(RuntimeError):
    """A decode step raised: the engine cannot be counted on any more."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What an engine needs to start. `model_path` is a Hugging Face directory. With `lora` the engine serves that model
    with an adapter, which alone is published to it; until the first one comes it serves the model itself."""

    model_path: str
    dtype: str = "bfloat16"
    max_model_len: int = 1024
    max_num_seqs: int = 64
    kv_cache_bytes: int = 1 << 30
    gpu_memory_utilization: float = 0.85
    tensor_parallel: int = 1
    enforce_eager: bool = True
    seed: int = 0
    sleep_level: int = 0
    """What `sleep` gives up beside the cache: 1 moves the weights to host memory, 2 forgets them. 0: no sleep."""
    lora: LoraSettings | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """One sequence to generate. Its token t is drawn with `sampling.uniforms(seed, made + t)`: it depends on nothing
    else in the batch. temperature 0 is greedy; its log-probs are those of temperature 1, of no use for training. made:
    the last tokens of the prompt that are a response begun elsewhere; the draws go on after them."""

    id: str
    prompt_tokens: tuple[int, ...]
    temperature: float
    max_tokens: int
    seed: int
    top_p: float = 1.0
    top_k: int = 0
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    made: int = 0


@dataclass(frozen=True, slots=True)
class StepOutput:
    """New tokens of one request since the last step, with their log-probs under the sampling distribution
    (temperature applied). `finish_reason` is None while the request runs. The end-of-sequence token, when sampled, is
    the last of the tokens; so are the tokens that completed a stop string."""

    request_id: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason | None


class RolloutEngine(Protocol):
    """Nine verbs. One caller, one thread."""

    def add_request(self, request: Request) -> None:
        """Queue a request. Its tokens end at `max_tokens` or at `max_model_len`, whichever comes first. ValueError if
        the prompt leaves no room for one, or if a request of this id is queued."""

    def step(self) -> list[StepOutput]:
        """Run one decode step of everything queued or running; outputs of the requests that advanced, in order (a
        request stands twice if it advanced during `logprobs` too). Empty when there is nothing to do."""

    def abort(self, request_ids: Sequence[str]) -> None:
        """Drop requests; unknown ids are ignored. No output of theirs appears afterwards."""

    def logprobs(self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Log-probs (temperature 1, float32) of each response token after its prompt, computed by the engine's own
        forward with the prefix cache out of play. Running requests may advance meanwhile; `step` returns what they
        made. EngineBetweenVersions as in `step`."""

    def sleep(self) -> None:
        """Give up the cache and, as `sleep_level` says, the weights, until the next update: `start_update` takes the
        memory of the weights back, `finish_update` that of the cache. RuntimeError while a request is running."""

    def start_update(self) -> None:
        """Enter the state between versions (again, if an update was abandoned or failed). Running requests stay and go
        on after `finish_update`, over the keys and values they have; those without a token start afresh."""

    def load_bucket(self, bucket: WeightBucket | DeviceBucket) -> None:
        """Load one bucket, in any order. Its bytes stay as they are until `finish_update` (they may be a view of shared
        memory) and nothing of it is kept after that. ValueError for a name the model does not have or a shape that is
        not its own."""

    def finish_update(self) -> None:
        """Make the loaded weights effective everywhere (packed kernels, tied heads) and forget cached prefixes.
        ValueError, and still between versions, if a parameter was not loaded."""

    def pressure(self) -> float:
        """The share of its cache that running sequences hold, in [0, 1]; may be read from any thread."""

    def close(self) -> None:
        """Free the engine and whatever processes it has."""
