"""Jobs on a real Ray head with a real job server: one session, every verb, and nothing left when it ends."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from cluster.commands.cancel import cancel
from cluster.commands.jobs import jobs as list_jobs
from cluster.commands.logs import logs
from cluster.commands.status import status
from cluster.errors import UserError
from cluster.service.jobs import Jobs, JobSpec, JobView, connect, train_job
from tests.fixtures.job_server import JobServer, free_ports, job_server
from tests.integration.runs import REPO, learned, recipe, rows


@pytest.fixture(scope="module")
def server() -> Iterator[JobServer]:
    with job_server(num_cpus=4) as started:
        yield started


@pytest.fixture(scope="module")
def jobs(server: JobServer) -> Jobs:
    return connect(server.address, server.environment)


def _job(name: str, code: str, run_dir: Path) -> JobSpec:
    return JobSpec(name, shlex.join([sys.executable, "-c", code]), str(REPO), str(run_dir))


def _wait(jobs: Jobs, name: str, until: Callable[[JobView], bool], timeout_s: float = 60.0) -> JobView:
    deadline = time.monotonic() + timeout_s
    while not until(view := jobs.status(name)):
        assert time.monotonic() < deadline, f"{name} is still {view.state} after {timeout_s} s"
        time.sleep(0.2)
    return view


def test_job_runs_the_shipped_checkout_and_its_log_can_be_followed(jobs: Jobs, tmp_path: Path) -> None:
    code = (
        "import os, cluster.service.jobs as jobs; print(jobs.__file__, os.path.exists('.git'), os.path.exists('.venv'))"
    )
    assert jobs.submit(_job("shipped", code, tmp_path)) == "shipped"
    written: list[str] = []
    end = jobs.follow("shipped", written.append)
    assert (end.state, end.run_dir) == ("SUCCEEDED", str(tmp_path))
    path, git, venv = re.search(
        r"^(/\S*cluster/service/jobs\.py) (\w+) (\w+)$", "".join(written), re.MULTILINE
    ).groups()
    assert not Path(path).is_relative_to(REPO)  # the copy, not this one
    assert (git, venv) == ("False", "False")
    assert path in jobs.logs("shipped")


def test_a_submitted_run_ends_like_a_local_one(
    jobs: Jobs, server: JobServer, whole_run: Path, tiny_model: Path, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    path = recipe(work, tiny_model)
    rewards = Path("tests", "integration", "rewards.py")
    (work / rewards).parent.mkdir(parents=True)
    shutil.copy(REPO / rewards, work / rewards)
    run_dir = tmp_path / "run"
    jobs.submit(
        train_job(path, [], address=server.address, run_dir=str(run_dir), submission_id="whole-run", working_dir=work)
    )
    view = _wait(jobs, "whole-run", lambda view: view.state in ("SUCCEEDED", "FAILED", "STOPPED"), timeout_s=240)
    assert view.state == "SUCCEEDED", jobs.logs("whole-run")
    assert learned(rows(run_dir)) == learned(rows(whole_run))
    assert (run_dir / "policy" / "step-4" / "model.safetensors").is_file()


def test_used_id_is_refused_on_the_server_too(jobs: Jobs, tmp_path: Path) -> None:
    jobs.submit(_job("twice", "pass", tmp_path))
    with pytest.raises(UserError, match="a job named twice already exists"):
        jobs.submit(_job("twice", "pass", tmp_path))


def test_cancel_ends_a_job_and_lets_it_clean_up_first(jobs: Jobs, tmp_path: Path) -> None:
    note = tmp_path / "cleaned"
    code = (
        "import pathlib, signal, sys\n"
        f"signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path({str(note)!r}).touch(), sys.exit(0)))\n"
        "print('ready', flush=True)\n"
        "signal.pause()\n"
    )
    jobs.submit(_job("long", code, tmp_path))
    _wait(jobs, "long", lambda view: view.state == "RUNNING" and re.search("^ready$", jobs.logs("long"), re.MULTILINE))
    assert jobs.cancel("long") is True
    assert _wait(jobs, "long", lambda view: view.ended).state == "STOPPED"
    assert note.exists()
    assert jobs.cancel("long") is False


def test_failed_job_is_failed_and_unknown_ones_are_named(jobs: Jobs, tmp_path: Path) -> None:
    jobs.submit(_job("broken", "raise SystemExit(3)", tmp_path))
    assert _wait(jobs, "broken", lambda view: view.ended).state == "FAILED"
    for verb in (jobs.status, jobs.logs, jobs.cancel):
        with pytest.raises(UserError, match="there is no job nope"):
            verb("nope")


def test_verbs_of_the_command_line_reach_the_server(
    server: JobServer, jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**server.environment, "RAYLIGN_ADDRESS": server.address}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")  # must not win over ours
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)  # a Ray that this process started before leaves it behind
    (tmp_path / "config.yaml").write_text("steps: 4\n")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "time": 1.0, "time/step_s": 2.0, "loss": 0.5}\n')
    jobs.submit(_job("shown", "print('from the job')", tmp_path))
    jobs.follow("shown", lambda chunk: None)

    def said(verb: Callable[..., None], *arguments: str) -> str:
        app = typer.Typer()
        app.command()(verb)
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        return result.output

    shown = said(status, "shown")
    assert "shown  succeeded" in shown
    assert f"{tmp_path}: step 1 of 4, about 6.0 s left" in shown
    assert "from the job" in said(logs, "shown")
    assert "from the job" in said(logs, "-f", "shown")
    assert "shown" in [line.split()[0] for line in said(list_jobs).splitlines()]
    assert "had ended already (succeeded)" in said(cancel, "shown")


def test_nothing_listening_is_one_sentence_with_the_fix() -> None:
    (port,) = free_ports(1)
    with pytest.raises(UserError, match=rf"no job server answers at http://127\.0\.0\.1:{port}; start one with"):
        connect(f"http://127.0.0.1:{port}", {})


def test_wrong_token_is_one_sentence_with_the_fix(server: JobServer) -> None:
    with pytest.raises(UserError, match="wants its token; set RAY_AUTH_MODE=token"):
        connect(server.address, {**os.environ, "RAY_AUTH_TOKEN": "0" * 32})
