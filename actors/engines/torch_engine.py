"""The rollout engine on plain transformers: vLLM's twin, small and clear, for tests and for models vLLM cannot run.

In: EngineSettings, requests, weight buckets. Out: StepOutputs, log-probs. Requests that start at the same step form a
cohort: one left-padded batch with one key-value cache, decoded together until all of it is done; new requests form
new cohorts, so they may come at any time. Left out: paged memory, prefix sharing, more than one device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, PreTrainedTokenizerBase

from actors.engines.interface import EngineBetweenVersions, EngineSettings, Request, StepOutput
from actors.engines.limits import end_tokens, refuse_sleep, room
from actors.engines.sampling import draw, uniforms
from actors.models.adapters import AdapterInbox, adapter_parameters, attach
from actors.models.numerics import placed, settle_kernels
from actors.transports.buckets import views_of
from actors.transports.interface import DeviceBucket
from actors.types import FinishReason, WeightBucket


@dataclass(slots=True)
class _Row:
    """A request in a cohort: what it made and what it may still make. `done` rows ride along unused."""

    request: Request
    limit: int
    made: list[int] = field(default_factory=list)
    done: bool = False


@dataclass(slots=True)
class _Cohort:
    """Rows that started together. tokens_BT is what the next forward reads (T the prompts' length at first, then 1);
    mask_BT covers the cache and those tokens."""

    rows: list[_Row]
    tokens_BT: torch.Tensor
    mask_BT: torch.Tensor
    cache: DynamicCache


class TorchEngine:
    """RolloutEngine over a transformers model on one device."""

    def __init__(self, settings: EngineSettings, device: str = "cpu") -> None:
        if settings.tensor_parallel != 1:
            raise ValueError(f"the torch engine has one device, tensor_parallel is {settings.tensor_parallel}: use 1")
        settle_kernels()
        self._settings = settings
        self._device = torch.device(device)
        dtype = getattr(torch, settings.dtype)
        model = AutoModelForCausalLM.from_pretrained(settings.model_path, dtype=dtype)
        self._model = placed(model, self._device).eval()
        self._inbox: AdapterInbox | None = None
        if settings.lora is not None:
            attach(self._model, settings.lora)
            for parameter in adapter_parameters(self._model).values():
                parameter.data = parameter.data.to(dtype)
            self._inbox = AdapterInbox({n: tuple(p.shape) for n, p in adapter_parameters(self._model).items()})
        self._end_tokens = frozenset(end_tokens(settings.model_path))
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._queued: dict[str, _Row] = {}
        self._cohorts: list[_Cohort] = []
        self._between = False
        self._missing: set[int] = set()

    def add_request(self, request: Request) -> None:
        limit = room(len(request.prompt_tokens), request.max_tokens, self._settings)
        if request.id in self._queued or any(row.request.id == request.id for row in self._running()):
            raise ValueError(f"request {request.id} is already running: ids must be unique")
        self._queued[request.id] = _Row(request, limit)

    @torch.inference_mode()
    def step(self) -> list[StepOutput]:
        if self._between:
            raise EngineBetweenVersions("the engine is between two versions: finish an update before decoding")
        free = self._settings.max_num_seqs - len(self._running())
        if starting := list(self._queued.values())[: max(free, 0)]:
            self._cohorts.append(self._start(starting))
            for row in starting:
                del self._queued[row.request.id]
        outputs = [output for cohort in self._cohorts for output in self._advance(cohort)]
        self._drop_finished()
        return outputs

    def abort(self, request_ids: Sequence[str]) -> None:
        for request_id in request_ids:
            self._queued.pop(request_id, None)
        for row in self._running():
            row.done = row.request.id in set(request_ids)
        self._drop_finished()

    @torch.inference_mode()
    def logprobs(self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> list[np.ndarray]:
        if self._between:
            raise EngineBetweenVersions("the engine is between two versions: finish an update before scoring")
        return [self._score(p, r) for p, r in zip(prompts, responses, strict=True)]

    @torch.no_grad()
    def sleep(self) -> None:
        refuse_sleep(self._settings, len(self._queued) + len(self._running()))
        self._between = True
        if self._settings.sleep_level == 2:
            for parameter in self._model.parameters():
                parameter.fill_(float("nan"))

    def start_update(self) -> None:
        self._between = True
        if self._inbox is not None:
            self._inbox.clear()
            return
        self._missing = {id(p) for p in self._model.parameters()}

    @torch.no_grad()
    def load_bucket(self, bucket: WeightBucket | DeviceBucket) -> None:
        if not self._between:
            raise RuntimeError("load_bucket outside an update: call start_update first")
        if self._inbox is not None:
            self._inbox.put(bucket)
            return
        parameters = dict(self._model.named_parameters(remove_duplicate=False))
        for name, tensor in views_of(bucket):
            if name not in parameters:
                raise ValueError(f"the model has no parameter {name}: publish a policy of the same model")
            if parameters[name].shape != tensor.shape:
                raise ValueError(f"{name} is {tuple(parameters[name].shape)} here, {tuple(tensor.shape)} in the bucket")
            parameters[name].copy_(tensor)
            self._missing.discard(id(parameters[name]))

    @torch.no_grad()
    def finish_update(self) -> None:
        if not self._between:
            raise RuntimeError("finish_update outside an update: call start_update first")
        if self._inbox is not None:
            parameters = adapter_parameters(self._model)
            for name, tensor in self._inbox.take().items():
                parameters[name].copy_(tensor)
            self._between = False
            return
        lacking = sorted(name for name, p in self._model.named_parameters() if id(p) in self._missing)
        if lacking:
            raise ValueError(f"the update lacks {len(lacking)} parameters, such as {lacking[0]}: publish them all")
        self._between = False

    def pressure(self) -> float:
        return len(self._running()) / self._settings.max_num_seqs

    def close(self) -> None:
        self._queued, self._cohorts = {}, []

    def _running(self) -> list[_Row]:
        return [row for cohort in self._cohorts for row in cohort.rows if not row.done]

    def _drop_finished(self) -> None:
        self._cohorts = [c for c in self._cohorts if not all(row.done for row in c.rows)]

    def _start(self, rows: list[_Row]) -> _Cohort:
        longest = max(len(row.request.prompt_tokens) for row in rows)
        tokens_BT = torch.zeros(len(rows), longest, dtype=torch.long)
        mask_BT = torch.zeros(len(rows), longest, dtype=torch.long)
        for i, row in enumerate(rows):
            tokens_BT[i, longest - len(row.request.prompt_tokens) :] = torch.tensor(row.request.prompt_tokens)
            mask_BT[i, longest - len(row.request.prompt_tokens) :] = 1
        return _Cohort(rows, tokens_BT.to(self._device), mask_BT.to(self._device), DynamicCache())

    def _advance(self, cohort: _Cohort) -> list[StepOutput]:
        positions_BT = (cohort.mask_BT.cumsum(-1) - 1).clamp(min=0)[:, -cohort.tokens_BT.shape[1] :]
        logits_BV = self._model(
            input_ids=cohort.tokens_BT,
            attention_mask=cohort.mask_BT,
            position_ids=positions_BT,
            past_key_values=cohort.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        tokens, logprobs = self._choose(cohort.rows, logits_BV.float())
        cohort.tokens_BT = torch.tensor(tokens, device=self._device)[:, None]
        cohort.mask_BT = torch.cat([cohort.mask_BT, torch.ones_like(cohort.tokens_BT)], dim=1)
        live = [(i, row) for i, row in enumerate(cohort.rows) if not row.done]
        return [self._append(row, tokens[i], logprobs[i]) for i, row in live]

    def _choose(self, rows: list[_Row], logits_BV: torch.Tensor) -> tuple[list[int], list[float]]:
        requests = [row.request for row in rows]
        for i, row in enumerate(rows):
            if len(row.made) < row.request.min_tokens and not row.request.ignore_eos:
                logits_BV[i, list(self._end_tokens)] = -torch.inf
        warm_B = torch.tensor([r.temperature if r.temperature > 0 else 1.0 for r in requests], device=self._device)
        vocabulary = logits_BV.shape[-1]
        top_k_B = torch.tensor([r.top_k if r.temperature > 0 and r.top_k > 0 else vocabulary for r in requests])
        top_p_B = torch.tensor([r.top_p if r.temperature > 0 else 1.0 for r in requests])
        limited = bool((top_k_B < vocabulary).any() or (top_p_B < 1).any())
        drawn_B, logprobs_BV = draw(
            logits_BV / warm_B[:, None],
            uniforms([r.seed for r in requests], [row.request.made + len(row.made) for row in rows]),
            top_k_B.to(self._device) if limited else None,
            top_p_B.to(self._device) if limited else None,
        )
        greedy_B = torch.tensor([r.temperature == 0 for r in requests], device=self._device)
        tokens_B = torch.where(greedy_B, logits_BV.argmax(-1), drawn_B)
        return tokens_B.tolist(), logprobs_BV.gather(-1, tokens_B[:, None])[:, 0].tolist()

    def _append(self, row: _Row, token: int, logprob: float) -> StepOutput:
        row.made.append(token)
        reason = self._finish_reason(row)
        row.done = reason is not None
        return StepOutput(row.request.id, (token,), (logprob,), reason)

    def _finish_reason(self, row: _Row) -> FinishReason | None:
        request = row.request
        if len(row.made) > request.min_tokens:
            if not request.ignore_eos and row.made[-1] in self._end_tokens:
                return FinishReason.STOP
            if request.stop and self._stops(row):
                return FinishReason.STOP
        return FinishReason.LENGTH if len(row.made) >= row.limit else None

    def _stops(self, row: _Row) -> bool:
        """Whether a stop string ends within the text made after the first `min_tokens`."""
        text, early = self._text(row.made), len(self._text(row.made[: row.request.min_tokens]))
        return any(text.find(stop, max(0, early - len(stop) + 1)) >= 0 for stop in row.request.stop)

    def _text(self, tokens: list[int]) -> str:
        if self._tokenizer is None:
            self._tokenizer = AutoTokenizer.from_pretrained(self._settings.model_path)
        text = self._tokenizer.decode(tokens, skip_special_tokens=True)
        assert isinstance(text, str), "one sequence is decoded to one text"
        return text

    def _score(self, prompt: Sequence[int], response: Sequence[int]) -> np.ndarray:
        """Position t's logits decide token t+1, so the response is read one position earlier."""
        if not len(response):
            return np.zeros(0, np.float32)
        tokens = torch.tensor([*map(int, prompt), *map(int, response)], device=self._device)
        logits_TV = self._model(input_ids=tokens[None], logits_to_keep=len(response) + 1).logits[0, :-1].float()
        targets_T = tokens[-len(response) :, None]
        return logits_TV.log_softmax(-1).gather(-1, targets_T)[:, 0].cpu().numpy()
