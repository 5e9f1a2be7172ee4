"""The Ray Serve application: one tuned policy behind `ray.serve.llm`, with our own door.

In: a ServedPolicy and ServeSettings (or, for a Serve config file and KubeRay's RayService, `build`'s plain arguments).
Out: a Serve Application with the routes /v1/models, /v1/chat/completions, /v1/completions and /healthz. The model's
own chat template makes the prompt, and it alone writes control tokens (guard.py). Left out: starting Ray (session.py);
adapters, embeddings and audio.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from typing import Any

import ray
from fastapi import Request
from pydantic import BaseModel, ValidationError
from ray import serve as ray_serve
from ray.llm._internal.serve.core.configs.openai_api_models import OpenAIHTTPException, to_model_metadata
from ray.serve.llm import LLMConfig, build_llm_deployment
from ray.serve.llm.deployment import LLMServer
from ray.serve.llm.ingress import OpenAiIngress, make_fastapi_ingress
from ray.serve.llm.openai_api_models import ChatCompletionRequest, CompletionRequest
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from actors.data.control import Controls
from serve.front import FrontSettings, error_answer, make_front
from serve.guard import policy_controls, refuse_control_tokens
from serve.policy import ServedPolicy, find_policy
from serve.settings import ServeSettings, token_from

HEALTH_TIMEOUT_S = 5.0

ROUTES = {
    "list_policy": lambda app: app.get("/v1/models", response_model=None),
    "describe_policy": lambda app: app.get("/v1/models/{model:path}", response_model=None),
    "answer_chat": lambda app: app.post("/v1/chat/completions", response_model=None),
    "answer_completion": lambda app: app.post("/v1/completions", response_model=None),
    "healthz": lambda app: app.get("/healthz", response_model=None),
}


class PolicyIngress(OpenAiIngress):
    """OpenAI's routes for one policy. The run's bare name is accepted as the model too and means the served version.

    A route's method has a name of its own: it takes the raw request, which the base class's `chat` does not.
    """

    def __init__(self, *args: Any, policy: ServedPolicy, controls: Controls, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._policy = policy
        self._controls = controls
        self._engine = next(iter(kwargs["llm_deployments"].values()))

    def _served(self, model: str | None) -> str:
        if model in (None, self._policy.name, self._policy.model_id):
            return self._policy.model_id
        raise OpenAIHTTPException(
            404, f"no model {model!r} here; this server has {self._policy.model_id}", "invalid_request_error"
        )

    def _card(self) -> dict[str, Any]:
        return {
            "id": self._policy.model_id,
            "object": "model",
            "created": 0,
            "owned_by": "raylign",
            "policy_version": self._policy.version,
        }

    async def list_policy(self) -> Response:
        return JSONResponse({"object": "list", "data": [self._card()]})

    async def describe_policy(self, model: str) -> Response:
        self._served(model)
        return JSONResponse(self._card())

    async def answer_chat(self, request: Request) -> Response:
        body = await _parsed(ChatCompletionRequest, request)
        refuse_control_tokens(await request.json(), self._controls)
        body.model = self._served(body.model)
        return await self.chat(body, request)

    async def answer_completion(self, request: Request) -> Response:
        body = await _parsed(CompletionRequest, request)
        body.model = self._served(body.model)
        return await self.completions(body, request)

    async def healthz(self) -> Response:
        """200 when the engine answers its own health check in time; a load balancer takes 503 out of service."""
        try:
            await asyncio.wait_for(_ask_health(self._engine), HEALTH_TIMEOUT_S)
        except (TimeoutError, ray.exceptions.RayError) as error:
            return error_answer(503, f"the engine does not answer ({type(error).__name__})", "server_error")
        return JSONResponse({"status": "ok", "model": self._policy.model_id, "policy_version": self._policy.version})


async def _parsed(kind: type[BaseModel], request: Request) -> Any:
    """The body as the engine's request type, or a 400 that says where it is wrong (never repeating the input).

    Not left to FastAPI: the engine's own validators raise TypeError and ValueError on odd bodies, which would be 500s.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        # Also what keeps another site's page, which may send plain text anywhere, from using this server.
        raise HTTPException(415, "send the body as JSON with `Content-Type: application/json`")
    try:
        return kind.model_validate(json.loads(await request.body()))
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "body"
        raise HTTPException(400, f"{where}: {first['msg']}") from error
    except (TypeError, ValueError, AttributeError, RecursionError) as error:
        raise HTTPException(400, f"the body is no valid {kind.__name__}: {error}") from error


class WarmServer(LLMServer):
    """An engine replica that has answered once before it takes traffic: the first answer takes seconds."""

    async def start(self) -> None:
        await super().start()
        model = self._llm_config.model_id
        warm_up = CompletionRequest.model_validate({"model": model, "prompt": "1", "max_tokens": 2})
        async for _ in await self.completions(warm_up):
            pass
        messages = [{"role": "user", "content": "1"}]
        turn = ChatCompletionRequest.model_validate({"model": model, "messages": messages, "max_tokens": 2})
        async for _ in await self.chat(turn):
            pass


async def _ask_health(engine: Any) -> None:
    await engine.options(stream=False).check_health.remote()


def engine_config(policy: ServedPolicy, settings: ServeSettings) -> LLMConfig:
    """What `ray.serve.llm` needs. On CPU the cache size is explicit and the threads are set: Ray forces one else."""
    engine: dict[str, Any] = {
        "dtype": settings.dtype,
        "max_num_seqs": settings.max_num_seqs,
        "generation_config": "vllm",  # only what the request asks for shapes the sampling
    }
    if settings.max_model_len is not None:
        engine["max_model_len"] = settings.max_model_len
    env_vars = {"HF_HUB_OFFLINE": "1"}
    if settings.gpus:
        engine |= {
            "tensor_parallel_size": settings.gpus,
            "gpu_memory_utilization": settings.gpu_memory_utilization,
        }
        bundles = [{"CPU": 1, "GPU": 1}] * settings.gpus
    else:
        threads = settings.cpu_threads or max(1, (os.cpu_count() or 1) // settings.replicas)
        engine |= {"enforce_eager": True, "kv_cache_memory_bytes": int(settings.kv_cache_gb * (1 << 30))}
        env_vars |= {"OMP_NUM_THREADS": str(threads), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        bundles = [{"CPU": 1}]
    return LLMConfig(
        model_loading_config={"model_id": policy.model_id, "model_source": policy.path},
        accelerator_type=None,
        placement_group_config={"bundles": bundles},
        engine_kwargs=engine,
        deployment_config={
            "num_replicas": settings.replicas,
            "max_ongoing_requests": 2 * settings.max_num_seqs,
            "max_constructor_retry_count": 1,  # a model that cannot start will not start the third time either
        },
        runtime_env={"env_vars": env_vars},
        log_engine_metrics=False,
    )


def build_application(policy: ServedPolicy, settings: ServeSettings) -> ray_serve.Application:
    """Engine replicas, and one ingress in front of them behind the door."""
    config = engine_config(policy, settings)
    front = make_front(FrontSettings(policy.version, settings.max_body_bytes, settings.token_sha256))
    front.exception_handler(OpenAIHTTPException)(_openai_error)
    ingress = make_fastapi_ingress(PolicyIngress, endpoint_map=ROUTES, app=front)
    deploy = ray_serve.deployment(
        name="PolicyIngress", num_replicas=1, max_ongoing_requests=4096, ray_actor_options={"num_cpus": 0}
    )
    return deploy(ingress).bind(
        llm_deployments={policy.model_id: build_llm_deployment(config, deployment_cls=WarmServer)},
        model_cards={policy.model_id: to_model_metadata(policy.model_id, config)},
        policy=policy,
        controls=policy_controls(policy),
    )


async def _openai_error(request: Request, error: OpenAIHTTPException) -> Response:
    kind = "invalid_request_error" if error.status_code < 500 else "server_error"
    code = "model_not_found" if error.status_code == 404 else None
    return error_answer(error.status_code, error.message, kind, code)


def build(args: Mapping[str, Any]) -> ray_serve.Application:
    """For a Serve config file: `import_path: serve.app:build`, args: policy, and optionally step, api_key_env and any
    of ServeSettings' fields."""
    fields = dict(args)
    policy = find_policy(fields.pop("policy"), fields.pop("step", None))
    token = token_from(fields.pop("api_key_env", None))
    return build_application(policy, ServeSettings(**fields, token_sha256=token))
