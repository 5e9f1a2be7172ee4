"""The door: what stands between the network and the engine, without Ray.

In: who is served (model id, version), the body limit, and the hash of a bearer token. Out: a FastAPI app whose every
answer, errors and streams included, carries the policy version; that refuses bodies past the limit before reading
them, strangers when a token is set, and that speaks OpenAI's error objects. It allows no cross-origin reading and
shows no documentation pages. Left out: the routes (app.py) and TLS (a reverse proxy's work).
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse

from serve.settings import token_hash

VERSION_HEADER = "x-raylign-policy-version"
OPEN_PATHS = frozenset({"/healthz"})
"""What a stranger may see: a load balancer has no token."""

logger = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class FrontSettings:
    """`token_sha256` is the hash of the bearer token, so that the token itself never travels through the cluster."""

    version: str
    max_body_bytes: int
    token_sha256: str | None


class _BodyTooLarge(Exception):
    """More bytes came than the limit allows (a body without a Content-Length)."""


def error_answer(
    status: int, message: str, kind: str, code: str | None = None, headers: dict[str, str] | None = None
) -> JSONResponse:
    """OpenAI's error object, which every client library knows how to show."""
    body = {"error": {"message": message, "type": kind, "param": None, "code": code}}
    return JSONResponse(body, status_code=status, headers=headers)


class Front:
    """ASGI middleware around the whole app: token, body limit, version header, and the last resort for exceptions."""

    def __init__(self, app: Any, settings: FrontSettings) -> None:
        self._app = app
        self._settings = settings
        self._version = (VERSION_HEADER.encode(), settings.version.encode())

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        started = False

        async def stamped(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message = {**message, "headers": [*message.get("headers", ()), self._version]}
            await send(message)

        refusal = self._refusal(scope)
        if refusal is not None:
            return await refusal(scope, receive, stamped)
        try:
            await self._app(scope, self._counted(receive), stamped)
        except _BodyTooLarge:
            await self._too_large()(scope, receive, stamped)
        except ClientDisconnect:
            logger.info("%s %s: the client left before it had sent its body", scope["method"], scope["path"])
        except Exception:  # the fault boundary: one request's failure must not end the server
            logger.exception("answering %s %s failed", scope["method"], scope["path"])
            if started:
                raise  # half an answer is out; only closing the connection tells the client
            answer = error_answer(500, "the server failed on this request; its log says why", "server_error")
            await answer(scope, receive, stamped)

    def _refusal(self, scope: Message) -> JSONResponse | None:
        headers = {key.lower(): value for key, value in scope["headers"]}
        expected = self._settings.token_sha256
        if expected is not None and scope["path"] not in OPEN_PATHS:
            scheme, _, token = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(token_hash(token.strip()), expected):
                return error_answer(
                    401,
                    "a valid key is needed: send it as `Authorization: Bearer KEY`",
                    "invalid_request_error",
                    "invalid_api_key",
                    {"WWW-Authenticate": "Bearer"},
                )
        length = headers.get(b"content-length", b"0")
        if not length.isdigit():
            return error_answer(400, "Content-Length must be a number", "invalid_request_error")
        return self._too_large() if int(length) > self._settings.max_body_bytes else None

    def _counted(self, receive: Receive) -> Receive:
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                if received > self._settings.max_body_bytes:
                    raise _BodyTooLarge
            return message

        return counted

    def _too_large(self) -> JSONResponse:
        limit = self._settings.max_body_bytes
        return error_answer(
            413, f"the body is larger than {limit} bytes; send less", "invalid_request_error", "body_too_large"
        )


def make_front(settings: FrontSettings) -> FastAPI:
    """An app without routes, behind the door."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.exception_handler(HTTPException)(_http_error)
    app.add_middleware(Front, settings=settings)
    return app


async def _http_error(request: Request, error: HTTPException) -> JSONResponse:
    kind = "invalid_request_error" if error.status_code < 500 else "server_error"
    if error.status_code == 404 and error.detail == "Not Found":  # the router's own words: no such route
        message = f"unknown URL ({request.method} {request.url.path}); this server answers under /v1"
        return error_answer(404, message, kind, "unknown_url")
    return error_answer(error.status_code, str(error.detail), kind, None, dict(error.headers or {}))
