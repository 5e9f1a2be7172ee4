"""A tiny policy behind `raylign serve`, asked by the official client: one session with every question, then Ctrl-C.

The engine takes most of a minute to start on two cores, so the questions share it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import openai
import psutil
import pytest
import yaml

from tests.fixtures.job_server import free_ports
from tests.fixtures.tiny_model import make_tiny_model, make_tiny_tokenizer

START_TIMEOUT_S = 240.0
STOP_TIMEOUT_S = 60.0
VERSION = "step-40/0f3c9a1b2d4e"
HEADER = "x-raylign-policy-version"
KEY = "a-key"
TURN = [{"role": "user", "content": "2+3?"}]
COMMAND = "import typer; from serve.commands.serve import serve; typer.run(serve)"
OPTIONS = ("--dtype=float32", "--max-body-mb=0.01", "--api-key-env=TEST_KEY")


@dataclass(frozen=True, slots=True)
class Session:
    process: subprocess.Popen
    base: str
    run: Path
    port: int
    before: set[Path]
    """What there was of what an engine leaves."""

    def client(self, key: str = KEY) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.base}/v1", api_key=key, max_retries=0, timeout=60)


def _traces() -> set[Path]:
    """Shared memory, and sockets and folders of this session's kinds among the temporary files."""
    temporary = {path for path in Path(tempfile.gettempdir()).iterdir() if path.is_socket() or "raylign" in path.name}
    return temporary | set(Path("/dev/shm").iterdir())


def _serve(run: Path, port: int, log: Path) -> subprocess.Popen:
    with log.open("w") as out:
        return subprocess.Popen(
            [sys.executable, "-c", COMMAND, str(run), f"--port={port}", *OPTIONS],
            env={**os.environ, "TEST_KEY": KEY},
            stdout=out,
            stderr=subprocess.STDOUT,
        )


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    run = tmp_path_factory.mktemp("tiny")
    directory = make_tiny_model(run / "policy" / "step-40")
    record = {"run": "tiny", "step": 40, "digest": "0f3c9a1b2d4e5f607182"}
    (directory / "raylign.json").write_text(json.dumps(record))
    (port,) = free_ports(1)
    log = run / "log"
    before = _traces()
    process = _serve(run, port, log)
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while "\nserving tiny-step-40" not in log.read_text():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.5)
        yield Session(process, f"http://127.0.0.1:{port}", run, port, before)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.wait(timeout=STOP_TIMEOUT_S)


def test_chat_answers_with_the_versioned_model_and_the_models_own_template(session: Session) -> None:
    raw = session.client().chat.completions.with_raw_response.create(
        model="tiny-step-40", messages=TURN, max_tokens=8, temperature=0
    )
    answer = raw.parse()
    assert raw.headers[HEADER] == VERSION
    assert answer.model == "tiny-step-40"
    assert answer.usage.completion_tokens <= 8
    tokenizer = make_tiny_tokenizer()
    templated = tokenizer.apply_chat_template(TURN, add_generation_prompt=True, tokenize=False)
    assert answer.usage.prompt_tokens == len(tokenizer(templated)["input_ids"])


def test_stream_adds_up_to_the_greedy_answer_and_names_the_version(session: Session) -> None:
    question = {"model": "tiny", "messages": TURN, "max_tokens": 8, "temperature": 0}
    whole = session.client().chat.completions.create(**question).choices[0].message.content
    with session.client().chat.completions.with_streaming_response.create(**question, stream=True) as raw:
        assert raw.headers[HEADER] == VERSION
        chunks = list(raw.parse())
    assert len(chunks) > 2
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole
    assert {chunk.model for chunk in chunks} == {"tiny-step-40"}


def test_logprobs_are_those_of_the_exported_weights(session: Session) -> None:
    """Greedy tokens' log-probs against transformers' own forward over the same directory, in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    answer = session.client().chat.completions.create(
        model="tiny", messages=TURN, max_tokens=6, temperature=0, logprobs=True, top_logprobs=2
    )
    got = [entry.logprob for entry in answer.choices[0].logprobs.content]
    tokenizer = make_tiny_tokenizer()
    prompt = tokenizer.apply_chat_template(TURN, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(session.run / "policy" / "step-40", dtype=torch.float32).eval()
    expected = []
    with torch.no_grad():
        for _ in got:
            best = torch.log_softmax(model(ids).logits[0, -1], dim=-1).max(dim=-1)
            expected.append(best.values.item())
            ids = torch.cat([ids, best.indices.view(1, 1)], dim=1)
    assert got == pytest.approx(expected, abs=1e-3)


def test_completions_answer_too(session: Session) -> None:
    answer = session.client().completions.create(model="tiny", prompt="2+3=", max_tokens=4)
    assert answer.model == "tiny-step-40"


def test_model_list_names_the_one_policy_and_its_version(session: Session) -> None:
    (card,) = session.client().models.list().data
    assert (card.id, card.policy_version) == ("tiny-step-40", VERSION)
    assert session.client().models.retrieve("tiny").id == "tiny-step-40"


def test_unknown_model_and_unknown_route_are_openai_404s(session: Session) -> None:
    with pytest.raises(openai.NotFoundError, match="this server has tiny-step-40") as error:
        session.client().chat.completions.create(model="other", messages=TURN)
    assert error.value.code == "model_not_found"
    assert error.value.response.headers[HEADER] == VERSION
    with pytest.raises(openai.NotFoundError) as error:
        session.client().embeddings.create(model="tiny", input="x")
    assert error.value.code == "unknown_url"


def test_huge_body_is_413_and_the_next_request_is_answered(session: Session) -> None:
    huge = [{"role": "user", "content": "x" * 2_000_000}]
    with pytest.raises(openai.APIStatusError) as error:
        session.client().chat.completions.create(model="tiny", messages=huge)
    assert error.value.status_code == 413
    assert session.client().models.list().data


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"messages": 3}, "no valid ChatCompletionRequest"),
        ({"temperature": "hot"}, "temperature: "),
        ({"max_tokens": 100_000}, "max_tokens=100000 cannot be greater"),
        ({"logprobs": True, "top_logprobs": 5_000}, "max allowed: 20"),
        (
            {"messages": [*TURN, {"role": "tool", "content": "a<|im_end|>b"}]},
            r"messages\[1\] spells <\|im_end\|>, a control",
        ),
    ],
)
def test_bad_request_is_a_400_that_says_what_is_wrong(session: Session, change: dict, said: str) -> None:
    with pytest.raises(openai.BadRequestError, match=said):
        session.client().post("/chat/completions", body={"model": "tiny", "messages": TURN, **change}, cast_to=object)


def test_a_control_token_is_written_by_a_template_alone(session: Session) -> None:
    """The model's own, or that of a client who writes the whole prompt; to stop at one is no prompt."""
    client = session.client()
    assert client.chat.completions.create(model="tiny", messages=TURN, max_tokens=2, stop=["<|im_end|>"]).choices
    templated = make_tiny_tokenizer().apply_chat_template(TURN, add_generation_prompt=True, tokenize=False)
    answer = client.completions.create(model="tiny", prompt=templated, max_tokens=2)
    assert answer.usage.prompt_tokens == len(make_tiny_tokenizer()(templated)["input_ids"])


def test_body_that_is_not_declared_json_is_refused(session: Session) -> None:
    request = urllib.request.Request(
        f"{session.base}/v1/chat/completions",
        data=b'{"messages": []}',
        headers={"Content-Type": "text/plain", "Authorization": f"Bearer {KEY}"},
    )
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(request, timeout=30)
    assert error.value.code == 415


def test_stranger_is_refused_but_may_ask_for_health(session: Session) -> None:
    with pytest.raises(openai.AuthenticationError):
        session.client(key="wrong").models.list()
    with urllib.request.urlopen(f"{session.base}/healthz", timeout=30) as answer:
        assert json.load(answer) == {"status": "ok", "model": "tiny-step-40", "policy_version": VERSION}


def test_second_server_on_the_port_is_refused_before_it_starts_anything(session: Session, tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = _serve(session.run, session.port, log)
    assert process.wait(timeout=60) == 2
    assert log.read_text() == (
        f"cannot listen on 127.0.0.1:{session.port} (Address already in use); choose another with --port or --host\n"
    )


def test_services_config_is_one_that_serve_accepts() -> None:
    from ray.serve.schema import ServeDeploySchema

    manifest = Path(__file__).parents[2] / "deploy" / "kuberay" / "rayservice.yaml"
    config = yaml.safe_load(yaml.safe_load(manifest.read_text())["spec"]["serveConfigV2"])
    assert ServeDeploySchema.model_validate(config).applications[0].name == "raylign"


def test_ctrl_c_leaves_no_process_and_no_file_and_frees_the_port(session: Session) -> None:
    """Last: it ends the session."""
    started = psutil.Process(session.process.pid).children(recursive=True)
    assert any("EngineCore" in process.name() or "EngineCore" in " ".join(process.cmdline()) for process in started)
    session.process.send_signal(signal.SIGINT)
    assert session.process.wait(timeout=STOP_TIMEOUT_S) == 0
    assert [process for process in started if process.is_running()] == []
    assert _traces() - session.before == set()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{session.base}/healthz", timeout=5)
