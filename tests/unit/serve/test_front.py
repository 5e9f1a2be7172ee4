"""The door in front of the engine, over a plain FastAPI app: no Ray, no engine, no network."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import HTTPException, Request
from starlette.responses import StreamingResponse
from starlette.testclient import TestClient

from serve.front import VERSION_HEADER, FrontSettings, make_front
from serve.policy import ServeInputError
from serve.settings import token_from, token_hash

VERSION = "step-40/0f3c9a1b2d4e"


def _client(token: str | None = None, max_body_bytes: int = 10) -> TestClient:
    app = make_front(FrontSettings(VERSION, max_body_bytes, None if token is None else token_hash(token)))

    @app.post("/v1/echo")
    async def echo(request: Request) -> dict[str, int]:
        return {"bytes": len(await request.body())}

    @app.get("/v1/stream")
    async def stream() -> StreamingResponse:
        return StreamingResponse(iter([b"one", b"two"]))

    @app.get("/v1/broken")
    async def broken() -> None:
        raise KeyError("a secret of the inside")

    @app.get("/v1/refused")
    async def refused() -> None:
        raise HTTPException(404, "no model 'x' here")

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    return TestClient(app, raise_server_exceptions=True)


def _error(answer: Any) -> dict[str, Any]:
    """The error object, after checking that it is OpenAI's and that the answer names the version."""
    assert answer.headers[VERSION_HEADER] == VERSION
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def test_every_answer_names_the_version_streams_and_errors_included() -> None:
    client = _client()
    answers = [
        client.post("/v1/echo", content=b"abc"),
        client.get("/v1/stream"),
        client.get("/nowhere"),
        client.get("/v1/broken"),
        client.get("/healthz"),
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 404, 500, 200]
    assert {answer.headers[VERSION_HEADER] for answer in answers} == {VERSION}


def test_body_at_the_limit_passes_and_one_byte_more_is_413() -> None:
    client = _client(max_body_bytes=10)
    assert client.post("/v1/echo", content=b"x" * 10).json() == {"bytes": 10}
    refused = client.post("/v1/echo", content=b"x" * 11)
    assert refused.status_code == 413
    assert _error(refused)["code"] == "body_too_large"


def test_body_without_a_length_is_counted_as_it_comes() -> None:
    def chunks(count: int) -> Iterator[bytes]:
        yield from [b"xxxx"] * count

    client = _client(max_body_bytes=10)
    assert client.post("/v1/echo", content=chunks(2)).json() == {"bytes": 8}
    refused = client.post("/v1/echo", content=chunks(3))
    assert refused.status_code == 413
    assert _error(refused)["code"] == "body_too_large"


def test_odd_content_length_is_a_400() -> None:
    refused = _client().post("/v1/echo", content=b"x", headers={"Content-Length": "-1"})
    assert refused.status_code == 400
    assert "Content-Length" in _error(refused)["message"]


def test_with_a_token_only_its_bearer_passes() -> None:
    client = _client(token="right")
    assert client.post("/v1/echo", headers={"Authorization": "Bearer right"}).status_code == 200
    assert client.post("/v1/echo", headers={"Authorization": "bearer right"}).status_code == 200
    for wrong in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "right"}, {"Authorization": "Basic right"}):
        refused = client.post("/v1/echo", headers=wrong)
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"] == "Bearer"
        assert _error(refused)["code"] == "invalid_api_key"


def test_with_a_token_a_stranger_learns_no_routes_but_may_ask_for_health() -> None:
    client = _client(token="right")
    assert client.get("/nowhere").status_code == 401
    assert client.get("/healthz").status_code == 200


def test_unknown_route_and_wrong_method_are_openai_errors() -> None:
    client = _client()
    assert _error(client.get("/v2/models"))["code"] == "unknown_url"
    wrong_method = client.get("/v1/echo")
    assert wrong_method.status_code == 405
    assert _error(wrong_method)["type"] == "invalid_request_error"


def test_a_routes_own_404_keeps_its_words() -> None:
    assert _error(_client().get("/v1/refused"))["message"] == "no model 'x' here"


def test_failure_inside_is_a_500_that_tells_nothing_of_the_inside() -> None:
    answer = _client().get("/v1/broken")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert _error(answer)["type"] == "server_error"


def test_no_cross_origin_reading_and_no_documentation_pages() -> None:
    client = _client()
    preflight = {"Origin": "https://example.com", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in client.options("/v1/echo", headers=preflight).headers
    assert "access-control-allow-origin" not in client.get("/healthz", headers=preflight).headers
    assert [client.get(path).status_code for path in ("/docs", "/redoc", "/openapi.json")] == [404, 404, 404]


def test_token_comes_from_the_named_variable_as_a_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "right")
    assert token_from("SOME_KEY") == token_hash("right")
    assert token_from(None) is None
    monkeypatch.setenv("SOME_KEY", "")
    with pytest.raises(ServeInputError, match="SOME_KEY is empty"):
        token_from("SOME_KEY")
