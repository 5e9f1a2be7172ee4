"""The rollout engine on vLLM, inside this process.

In: EngineSettings, requests, weight buckets. Out: StepOutputs, log-probs. With tensor_parallel 1 the model runs in
this very process (no child to orphan or to hang); above that vLLM's executor starts one worker a device, its own
processes on one node, Ray actors inside a placement group. Weights take one path in both cases: `collective_rpc` to
`WeightPort` (port.py), which vLLM mixes into its worker. Left out: Ray, versions and digests (the rollout worker
has them), how weights travel (transports).
"""

from __future__ import annotations

import actors.engines.vllm.environment  # noqa: F401 - vLLM reads it when it is imported

# isort: split
import gc
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from vllm import SamplingParams, TokensPrompt
from vllm.engine.arg_utils import EngineArgs
from vllm.lora.request import LoRARequest
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.llm_engine import LLMEngine

from actors.engines.interface import EngineBetweenVersions, EngineSettings, Request, StepOutput
from actors.engines.limits import end_tokens, read_model_config, refuse_sleep, room, unsupported_reason
from actors.engines.probe import last_logprobs
from actors.engines.vllm.adapter import AdapterSlot, adapter_args
from actors.engines.vllm.port import MADE, SEED, WeightPort
from actors.transports.interface import DeviceBucket
from actors.types import FinishReason, WeightBucket

if TYPE_CHECKING:
    from vllm.config.model import ModelDType

CPU_BLOCK_TOKENS = 32
"""KV block on CPU. vLLM's default of 128 there would never share a prompt shorter than 128 among its samples."""


class VllmEngine:
    """RolloutEngine over vLLM's LLMEngine; the caller's `step` is the engine's only clock.

    Prefixes are cached under a salt that changes with every weight update and whenever the engine was idle: no prefix
    outlives its weights, and what a wave of requests computes does not depend on the waves before it.
    """

    _in_process = 0
    """Live engines whose model runs in this process."""

    def __init__(self, settings: EngineSettings) -> None:
        device = "cpu" if current_platform.is_cpu() else "cuda"
        reason = unsupported_reason(read_model_config(settings.model_path), settings, device)
        if reason is not None:
            raise ValueError(f"{settings.model_path}: {reason}")
        self._settings = settings
        self._end_tokens = list(end_tokens(settings.model_path))
        self._opened: LLMEngine | None = LLMEngine.from_engine_args(_engine_args(settings, device))
        self._engine.collective_rpc("raylign_use_seeded_draw")
        self._lora: LoRARequest | None = None
        self._adapter: AdapterSlot | None = None
        if settings.lora is not None:
            self._adapter = AdapterSlot(settings.model_path, settings.lora, self._load_adapter)
            if device == "cpu":
                self._engine.collective_rpc("raylign_use_matmul_adapter")
        VllmEngine._in_process += settings.tensor_parallel == 1
        self._between = self._asleep = False
        self._salt = 0
        self._requests: dict[str, Request] = {}
        self._started: set[str] = set()
        self._held: list[StepOutput] = []
        self._probes = 0

    @property
    def _engine(self) -> LLMEngine:
        if self._opened is None:
            raise RuntimeError("the engine is closed: make another")
        return self._opened

    def _advance(self) -> list[Any]:
        """One decode step of vLLM: RequestOutputs. Any, because vLLM declares that they may be of another kind and may
        lack the ids and log-probs that each request of ours asks for."""
        return self._engine.step()

    def add_request(self, request: Request) -> None:
        limit = room(len(request.prompt_tokens), request.max_tokens, self._settings)
        if request.id in self._requests:
            raise ValueError(f"request {request.id} is already running: ids must be unique")
        if not self._requests:
            self._salt += 1
        self._submit(request, limit)
        self._requests[request.id] = request

    def step(self) -> list[StepOutput]:
        if self._between:
            raise EngineBetweenVersions("the engine is between two versions: finish an update before decoding")
        held, self._held = self._held, []
        # A request stands twice when it advanced during `logprobs` and again now; both belong to it, in this order.
        return held + [self._convert(raw) for raw in self._advance()]

    def abort(self, request_ids: Sequence[str]) -> None:
        known = [i for i in request_ids if i in self._requests]
        self._engine.abort_request(known, internal=False)
        for request_id in known:
            self._forget(request_id)
        self._held = [output for output in self._held if output.request_id not in set(known)]

    def logprobs(self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> list[np.ndarray]:
        if self._between:
            raise EngineBetweenVersions("the engine is between two versions: finish an update before scoring")
        found: dict[str, np.ndarray] = {}
        params = SamplingParams(
            max_tokens=1,
            temperature=0.0,
            extra_args={SEED: 0, MADE: 0},
            prompt_logprobs=0,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        self._probes += 1
        ids = [f"probe/{self._probes}/{row}" for row in range(len(prompts))]
        for request_id, prompt, response in zip(ids, prompts, responses, strict=True):
            tokens = [int(t) for t in (*prompt, *response)]
            if not len(response):
                found[request_id] = np.zeros(0, np.float32)
                continue
            if len(tokens) > self._settings.max_model_len:
                raise ValueError(
                    f"a probe of {len(tokens)} tokens is past max_model_len {self._settings.max_model_len}: shorten it"
                )
            self._engine.add_request(request_id, TokensPrompt(prompt_token_ids=tokens), params, lora_request=self._lora)
        lengths = dict(zip(ids, (len(r) for r in responses), strict=True))
        while len(found) < len(ids):
            for raw in self._advance():
                if raw.request_id in lengths:
                    count = lengths[raw.request_id]
                    found[raw.request_id] = last_logprobs(raw.prompt_token_ids, raw.prompt_logprobs, count)
                else:
                    self._held.append(self._convert(raw))
        return [found[request_id] for request_id in ids]

    def sleep(self) -> None:
        refuse_sleep(self._settings, len(self._requests))
        self._between = self._asleep = True
        self._engine.sleep(self._settings.sleep_level)

    def start_update(self) -> None:
        self._between = True
        if self._asleep:
            self._engine.wake_up(["weights"])
        if self._adapter is None:
            self._engine.collective_rpc("raylign_start_update")
        else:
            self._adapter.inbox.clear()

    def load_bucket(self, bucket: WeightBucket | DeviceBucket) -> None:
        if not self._between:
            raise RuntimeError("load_bucket outside an update: call start_update first")
        if self._adapter is None:
            self._engine.collective_rpc("raylign_load_bucket", args=(bucket,))
        else:
            self._adapter.inbox.put(bucket)

    def finish_update(self) -> None:
        if not self._between:
            raise RuntimeError("finish_update outside an update: call start_update first")
        if self._adapter is None:
            self._engine.collective_rpc("raylign_finish_update")
        else:
            self._adapter.finish()
        if self._asleep:
            self._engine.wake_up(["kv_cache"])
            self._asleep = False
        self._salt += 1
        # Requests that have no token yet start again, so that their prompt is read under the new weights only.
        # Those that have tokens go on over the keys and values they have.
        for request in [r for r in self._requests.values() if r.id not in self._started]:
            self._engine.abort_request([request.id], internal=False)
            self._submit(request, room(len(request.prompt_tokens), request.max_tokens, self._settings))
        self._between = False

    def pressure(self) -> float:
        core: Any = self._engine.engine_core  # in this process (environment.py), which its declared base leaves open
        return float(core.engine_core.scheduler.kv_cache_manager.usage)

    def close(self) -> None:
        if self._opened is None:
            return
        VllmEngine._in_process -= self._settings.tensor_parallel == 1
        # vLLM's shutdown ends the process groups that every engine of this process shares: the last one calls it.
        if self._settings.tensor_parallel > 1 or VllmEngine._in_process == 0:
            self._opened.engine_core.shutdown()
        self._opened = None
        gc.collect()

    def _submit(self, request: Request, max_tokens: int) -> None:
        prompt = TokensPrompt(prompt_token_ids=list(request.prompt_tokens), cache_salt=str(self._salt))
        params = self._sampling_params(request, max_tokens)
        self._engine.add_request(request.id, prompt, params, lora_request=self._lora)

    def _load_adapter(self, folder: str) -> None:
        """Loaded again in place, under the name that all requests carry."""
        self._engine.add_lora(LoRARequest("policy", 1, folder, load_inplace=True))
        self._lora = LoRARequest("policy", 1, folder)

    def _sampling_params(self, request: Request, max_tokens: int) -> SamplingParams:
        """EOS is ours to define: vLLM's own is switched off and our end tokens are stop tokens, which it keeps in
        the output. logprobs=0 returns the sampled token's log-prob alone."""
        return SamplingParams(
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            extra_args={SEED: request.seed, MADE: request.made},
            max_tokens=max_tokens,
            min_tokens=min(request.min_tokens, max_tokens),
            stop=list(request.stop),
            detokenize=bool(request.stop),
            ignore_eos=True,
            stop_token_ids=[] if request.ignore_eos else self._end_tokens,
            logprobs=0,
            output_kind=RequestOutputKind.DELTA,
        )

    def _convert(self, raw: Any) -> StepOutput:
        made = raw.outputs[0]
        tokens = tuple(made.token_ids)
        logprobs = tuple(at[token].logprob for at, token in zip(made.logprobs or (), tokens, strict=True))
        if not raw.finished:
            self._started.add(raw.request_id)
            return StepOutput(raw.request_id, tokens, logprobs, None)
        self._forget(raw.request_id)
        return StepOutput(raw.request_id, tokens, logprobs, _FINISH[made.finish_reason])

    def _forget(self, request_id: str) -> None:
        self._requests.pop(request_id)
        self._started.discard(request_id)


_FINISH = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH, "abort": FinishReason.ABORT}


def _engine_args(settings: EngineSettings, device: str) -> EngineArgs:
    on_cpu = device == "cpu"
    return EngineArgs(
        model=settings.model_path,
        dtype=cast("ModelDType", settings.dtype),  # a name, which vLLM checks
        seed=settings.seed,
        max_model_len=settings.max_model_len + 1,
        max_num_seqs=settings.max_num_seqs,
        kv_cache_memory_bytes=settings.kv_cache_bytes if on_cpu else None,
        gpu_memory_utilization=settings.gpu_memory_utilization,
        block_size=CPU_BLOCK_TOKENS if on_cpu else None,
        tensor_parallel_size=settings.tensor_parallel,
        enforce_eager=settings.enforce_eager,
        enable_sleep_mode=settings.sleep_level > 0,
        enable_prefix_caching=True,
        async_scheduling=False,  # the tokens of a step belong to the weights of that step, so none may be in flight
        logprobs_mode="processed_logprobs",
        generation_config="vllm",  # sampling defaults come from our settings, not from the model's directory
        worker_extension_cls=f"{WeightPort.__module__}.{WeightPort.__qualname__}",
        disable_log_stats=True,
        **adapter_args(settings),
    )
