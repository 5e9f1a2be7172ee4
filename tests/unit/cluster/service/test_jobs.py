"""Jobs over a client written here: what is sent, what comes back, and each error's sentence. No Ray."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from cluster.commands.logs import follow_to_end
from cluster.commands.status import describe, progress, run_lines
from cluster.config import load_run
from cluster.config.loading.load import ConfigError
from cluster.errors import RunFailed, UserError
from cluster.service.jobs import (
    STOP_WAIT_S,
    Jobs,
    JobSpec,
    JobView,
    auth_headers,
    is_this_machine,
    resolve_address,
    train_job,
)
from cluster.service.shipping import EXCLUDES
from tests.unit.cluster.config.test_pipeline import TREE

HERE, THERE = "http://127.0.0.1:8265", "http://head.example.com:8265"


class State(Enum):
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"


@dataclass
class FakeClient:
    """Ray's client in twenty lines: refuses a used id and knows no job it was not given."""

    jobs: dict[str, Any] = field(default_factory=dict)
    sent: list[dict[str, Any]] = field(default_factory=list)
    log: tuple[str, ...] = ("one\n", "two\n")
    lost: bool = False

    def submit_job(self, **request: Any) -> str:
        name = request["submission_id"]
        if name in self.jobs:
            raise RuntimeError(f"Request failed with status code 400: Job with submission_id {name} already exists.")
        self.sent.append(request)
        self.jobs[name] = SimpleNamespace(
            submission_id=name,
            status=State.RUNNING,
            message=None,
            metadata=request["metadata"],
            start_time=5_000 + len(self.jobs),
            end_time=None,
        )
        return name

    def get_job_info(self, job_id: str) -> Any:
        if self.lost:
            raise OSError("connection refused")
        if job_id not in self.jobs:
            raise RuntimeError(f"Request failed with status code 404: Job {job_id} does not exist.")
        return self.jobs[job_id]

    def get_job_logs(self, job_id: str) -> str:
        self.get_job_info(job_id)
        return "".join(self.log)

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        for line in self.log:
            await asyncio.sleep(0)
            yield line
        self.jobs[job_id].status, self.jobs[job_id].end_time = State.SUCCEEDED, 9_000

    def stop_job(self, job_id: str) -> bool:
        """As Ray's, while the supervisor of a job that has just ended still lives."""
        self.get_job_info(job_id)
        return True

    def list_jobs(self) -> list[Any]:
        return [*self.jobs.values(), SimpleNamespace(submission_id=None)]


def _spec(name: str = "first") -> JobSpec:
    return JobSpec(name, "python -c pass", "/checkout", "/runs/first")


def _config(folder: Path, **changes: Any) -> Path:
    tree = {
        "name": "tiny",
        "steps": 4,
        "algorithm": "grpo",
        "model": {"path": "model"},
        "data": {"path": "prompts.jsonl"},
        "reward": {"functions": {"exact": {"function": "exact_match"}}},
        "rollout": {"sampling": {"samples_per_prompt": 2}},
        **changes,
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def test_job_ships_the_working_directory_without_what_is_only_local_and_gives_time_to_stop() -> None:
    client = FakeClient()
    assert Jobs(client, HERE).submit(_spec()) == "first"
    request = client.sent[0]
    assert request["entrypoint"] == "python -c pass"
    assert request["runtime_env"]["working_dir"] == "/checkout"
    assert {".git/", ".venv/", "runs/"} <= set(request["runtime_env"]["excludes"]) == set(EXCLUDES)
    assert request["runtime_env"]["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"] == str(STOP_WAIT_S) == "60"
    assert "py_modules" not in request["runtime_env"]


def test_job_ships_code_beside_its_folder_and_may_have_no_folder() -> None:
    client = FakeClient()
    Jobs(client, HERE).submit(JobSpec("asks", "python -c pass", None, "/runs/first", code=("/site/cluster",)))
    assert client.sent[0]["runtime_env"]["py_modules"] == ["/site/cluster"]
    assert "working_dir" not in client.sent[0]["runtime_env"]


def test_used_id_is_a_user_error_that_says_what_to_do() -> None:
    jobs = Jobs(FakeClient(), HERE)
    jobs.submit(_spec())
    with pytest.raises(UserError, match=r"a job named first already exists at .*--id"):
        jobs.submit(_spec())


def test_other_refusals_carry_the_servers_last_line() -> None:
    class Refusing(FakeClient):
        def submit_job(self, **request: Any) -> str:
            raise RuntimeError("status code 500: Traceback:\\n  File x\\nOSError: no space left")

    with pytest.raises(RunFailed, match=r"refused the job: OSError: no space left$"):
        Jobs(Refusing(), HERE).submit(_spec())


def test_status_tells_state_run_directory_and_times_in_seconds() -> None:
    jobs = Jobs(FakeClient(), HERE)
    jobs.submit(_spec())
    view = jobs.status("first")
    assert (view.state, view.run_dir, view.started_s, view.ended_s) == ("RUNNING", "/runs/first", 5.0, None)
    assert not view.ended


@pytest.mark.parametrize("verb", ["status", "logs", "cancel"])
def test_unknown_job_is_named_by_every_verb(verb: str) -> None:
    with pytest.raises(UserError, match=r"there is no job nope at .*raylign jobs"):
        getattr(Jobs(FakeClient(), HERE), verb)("nope")


def test_lost_connection_says_how_to_start_a_job_server() -> None:
    with pytest.raises(UserError, match=r"no job server answers at .*ray start --head"):
        Jobs(FakeClient(lost=True), HERE).status("first")


def test_follow_writes_every_chunk_and_tells_how_it_ended() -> None:
    jobs, written = Jobs(FakeClient(), HERE), []
    jobs.submit(_spec())
    assert jobs.follow("first", written.append).state == "SUCCEEDED"
    assert written == ["one\n", "two\n"]


def test_following_a_job_that_failed_fails_with_the_way_to_resume() -> None:
    class Failing(FakeClient):
        async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
            self.jobs[job_id].status, self.jobs[job_id].message = State.FAILED, "exit code 1"
            yield "out of memory\n"

    jobs = Jobs(Failing(), HERE)
    jobs.submit(_spec())
    with pytest.raises(RunFailed, match=r"first failed: exit code 1; .*--resume --run-dir /runs/first"):
        follow_to_end(jobs, "first")


def test_cancel_tells_whether_there_was_something_to_stop() -> None:
    client = FakeClient()
    jobs = Jobs(client, HERE)
    jobs.submit(_spec())
    assert jobs.cancel("first") is True
    client.jobs["first"].status = State.SUCCEEDED
    assert jobs.cancel("first") is False


def test_list_has_the_newest_first_and_leaves_out_what_was_not_submitted() -> None:
    jobs = Jobs(FakeClient(), HERE)
    jobs.submit(_spec("first"))
    jobs.submit(_spec("second"))
    assert [job.submission_id for job in jobs.list()] == ["second", "first"]


def test_address_is_the_option_then_raylign_then_ray_then_this_machine() -> None:
    both = {"RAYLIGN_ADDRESS": "http://a", "RAY_ADDRESS": "http://b"}
    assert resolve_address("http://option", both) == "http://option"
    assert resolve_address(None, both) == "http://a"
    assert resolve_address(None, {"RAYLIGN_ADDRESS": "", "RAY_ADDRESS": "http://b"}) == "http://b"
    assert resolve_address(None, {}) == "http://127.0.0.1:8265"


def test_loopback_names_are_this_machine() -> None:
    assert all(map(is_this_machine, (HERE, "http://localhost:1", "127.0.0.1:6379", "http://[::1]:8265", "auto")))
    assert not any(map(is_this_machine, (THERE, "ray://head:10001", "10.0.0.2:6379")))


def test_this_machines_token_goes_to_this_machine_only_and_never_against_a_set_mode(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("abc\n")
    access = {"RAY_AUTH_TOKEN_PATH": str(token)}
    assert auth_headers(HERE, access) == {"Authorization": "Bearer abc"}
    assert auth_headers(HERE, {**access, "RAY_AUTH_TOKEN": "xyz"}) == {"Authorization": "Bearer xyz"}
    assert auth_headers(THERE, access) == {}
    assert auth_headers(HERE, {**access, "RAY_AUTH_MODE": "disabled"}) == {}
    assert auth_headers(HERE, {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")}) == {}


def test_train_job_attaches_to_the_cluster_it_runs_on_whatever_the_config_says(tmp_path: Path) -> None:
    spec = train_job(
        _config(tmp_path),
        ["ray.address=local", "steps=2"],
        address=THERE,
        run_dir="/shared/first",
        working_dir=tmp_path,
        now=datetime(2026, 8, 1, 12, 30, 0),
    )
    assert spec.entrypoint == (
        f"exec $(test -x {sys.executable} && echo {sys.executable} || echo python) -m cluster.cli train "
        "tiny.yaml ray.address=local steps=2 ray.address=auto --run-dir /shared/first"
    )
    assert spec.submission_id == "tiny-20260801-123000"
    assert spec.working_dir == str(tmp_path)


def test_values_with_spaces_and_shell_signs_reach_the_job_as_they_are(tmp_path: Path) -> None:
    override = 'data.suffix="; rm -rf $HOME"'
    spec = train_job(_config(tmp_path), [override], address=THERE, run_dir="/r", working_dir=tmp_path, resume=True)
    assert """'data.suffix="; rm -rf $HOME"'""" in spec.entrypoint
    assert spec.entrypoint.endswith(" --run-dir /r --resume")


def test_config_errors_come_before_anything_is_shipped(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="steps"):
        train_job(_config(tmp_path, steps=0), [], address=HERE, run_dir=None, working_dir=tmp_path)


def test_config_outside_the_working_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "checkout").mkdir()
    with pytest.raises(UserError, match=r"tiny\.yaml is outside .*checkout"):
        train_job(_config(tmp_path), [], address=HERE, run_dir=None, working_dir=tmp_path / "checkout")


def test_run_directory_of_a_remote_job_must_be_given_and_absolute(tmp_path: Path) -> None:
    config = _config(tmp_path)
    with pytest.raises(UserError, match="give --run-dir"):
        train_job(config, [], address=THERE, run_dir=None, working_dir=tmp_path)
    with pytest.raises(UserError, match="must be an absolute path"):
        train_job(config, [], address=THERE, run_dir="runs/x", working_dir=tmp_path)
    url = train_job(config, [], address=THERE, run_dir="s3://bucket/x", working_dir=tmp_path)
    assert url.run_dir == "s3://bucket/x"


def test_run_directory_on_this_machine_is_made_absolute_since_the_job_runs_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = _config(tmp_path)
    named = train_job(config, [], address=HERE, run_dir="mine", working_dir=tmp_path)
    unnamed = train_job(config, [], address=HERE, run_dir=None, submission_id="j1", working_dir=tmp_path)
    assert (named.run_dir, unnamed.run_dir) == (f"{tmp_path}/mine", f"{tmp_path}/runs/j1")


def test_a_pipeline_is_submitted_as_a_run_is_but_not_to_a_url(tmp_path: Path) -> None:
    file = tmp_path / "pipeline.yaml"
    file.write_text(yaml.safe_dump(TREE))
    spec = train_job(file, ["seed=1"], address=THERE, run_dir="/shared/p", working_dir=tmp_path)
    assert spec.submission_id.startswith("rlhf-")
    assert spec.entrypoint.endswith("pipeline.yaml seed=1 ray.address=auto --run-dir /shared/p")
    assert load_run(file, ["seed=1", "ray.address=auto"]).stages[2].config.ray.address == "auto"
    with pytest.raises(UserError, match="a pipeline's directory must be a local or mounted path"):
        train_job(file, [], address=THERE, run_dir="s3://bucket/x", working_dir=tmp_path)


def test_time_left_is_the_median_step_times_the_steps_left() -> None:
    rows = [{"step": step, "time/step_s": seconds} for step, seconds in ((1, 2.0), (2, 90.0), (3, 4.0))]
    at = progress(rows, steps=10)
    assert (at.step, at.seconds_left) == (3, 7 * 4.0)
    assert progress(rows, steps=3).seconds_left is None
    assert progress([], steps=3) == progress([{"step": 0}], steps=3)


def test_last_evaluation_stays_shown_and_numbers_that_are_not_finite_are_left_out() -> None:
    rows = [{"step": 1, "eval/reward": 0.2, "loss": 3.0}, {"step": 2, "loss": 1.5, "kl/ref": None, "time": 7.0}]
    assert progress(rows, steps=5).latest == {"eval/reward": 0.2, "loss": 1.5}


def test_run_directory_is_described_by_its_files(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("steps: 40\n")
    (tmp_path / "metrics.jsonl").write_text('{"step": 10, "time": 1.0, "time/step_s": 6.0, "reward/mean": 0.25}\n')
    lines = run_lines(str(tmp_path))
    assert lines[0] == f"{tmp_path}: step 10 of 40, about 3 min 00 s left"
    assert [line.split() for line in lines[1:]] == [["reward/mean", "0.25"], ["time/step_s", "6"]]
    end = '{"time": 2.0, "step": 10, "kind": "end", "text": "no better evaluation in 3"}\n'
    (tmp_path / "events.jsonl").write_text(end)
    assert run_lines(str(tmp_path))[0] == f"{tmp_path}: step 10 of 40, no better evaluation in 3"
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11, "time": 3.0, "time/step_s": 6.0}\n')
    assert run_lines(str(tmp_path))[0] == f"{tmp_path}: step 11 of 40, about 2 min 54 s left", "it was resumed"
    with pytest.raises(UserError, match="holds no run"):
        run_lines(str(tmp_path / "empty"))


def test_job_line_counts_to_now_while_it_runs_and_to_its_end_after() -> None:
    running = JobView("a", "RUNNING", "", "/runs/a", started_s=100.0, ended_s=None)
    ended = JobView("b", "FAILED", "", None, started_s=100.0, ended_s=130.0)
    assert describe(running, now_s=160.0) == "a  running  1 min 00 s  /runs/a"
    assert describe(ended, now_s=160.0) == "b  failed  30 s"
