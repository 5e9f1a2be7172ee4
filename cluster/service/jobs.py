"""Jobs on a running Ray cluster: submit, status, logs, cancel, list.

In: a config, overrides and a run directory; the job server's address. Out: a submission id, and `JobView`s. A job is a
`raylign train` with `ray.address=auto`, run on the head node in a copy of a folder (shipping.py says which). The verbs
are a job service's: a queue, quotas and retries can stand behind the same `Jobs` without a caller changing. What a job
trained is in its run directory, never here: a Ray job runs once and is forgotten with its cluster.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from cluster.config import Pipeline, load_run
from cluster.errors import RunFailed, UserError
from cluster.run.stages import PipelineDirectory
from cluster.service.shipping import EXCLUDES, code_beside, folder_of, refuse_what_stays_behind

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
ADDRESS_VARIABLES = ("RAYLIGN_ADDRESS", "RAY_ADDRESS")
STOP_WAIT_S = 60
"""From cancel's SIGTERM to SIGKILL: long enough to leave a resumable run."""
RUN_DIR_KEY = "raylign_run_dir"
RAY_LOGGERS = (
    "ray.dashboard.modules.job.sdk",
    "ray.dashboard.modules.dashboard_sdk",
    "ray._private.runtime_env.packaging",
)
"""They tell of every ignored file and closed socket."""
ENDED = frozenset({"STOPPED", "SUCCEEDED", "FAILED"})


@dataclass(frozen=True, slots=True)
class JobSpec:
    """What is submitted. `entrypoint` is a shell command, run in a copy of `working_dir` (None: where the head runs
    jobs); `code` are directories of modules that it imports besides."""

    submission_id: str
    entrypoint: str
    working_dir: str | None
    run_dir: str
    env_vars: Mapping[str, str] = field(default_factory=dict)
    code: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class JobView:
    """A job as it stands. `state` is PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED; times are unix seconds."""

    submission_id: str
    state: str
    message: str
    run_dir: str | None
    started_s: float | None
    ended_s: float | None

    @property
    def ended(self) -> bool:
        return self.state in ENDED


class JobClient(Protocol):
    """The part of Ray's JobSubmissionClient that is used."""

    def submit_job(self, *, entrypoint: str, submission_id: str, runtime_env: Any, metadata: Any) -> str: ...
    def get_job_info(self, job_id: str) -> Any: ...
    def get_job_logs(self, job_id: str) -> str: ...
    def tail_job_logs(self, job_id: str) -> AsyncIterator[str]: ...
    def stop_job(self, job_id: str) -> bool: ...
    def list_jobs(self) -> list[Any]: ...


class Jobs:
    """The five verbs over a client. Errors about a job are UserErrors that name it."""

    def __init__(self, client: JobClient, address: str) -> None:
        self._client = client
        self.address = address

    def submit(self, spec: JobSpec) -> str:
        """Ship the working directory and the code, and start the job; its id."""
        runtime_env: dict[str, Any] = {
            "excludes": list(EXCLUDES),
            "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S), **spec.env_vars},
        }
        if spec.working_dir is not None:
            runtime_env["working_dir"] = spec.working_dir
        if spec.code:
            runtime_env["py_modules"] = list(spec.code)
        try:
            return self._client.submit_job(
                entrypoint=spec.entrypoint,
                submission_id=spec.submission_id,
                runtime_env=runtime_env,
                metadata={RUN_DIR_KEY: spec.run_dir},
            )
        except RuntimeError as error:
            if "already exists" in str(error):
                raise UserError(
                    f"a job named {spec.submission_id} already exists at {self.address}; give another --id, "
                    f"or see it with `raylign status {spec.submission_id}`"
                ) from error
            raise RunFailed(f"the job server at {self.address} refused the job: {_first_line(error)}") from error

    def status(self, submission_id: str) -> JobView:
        with self._about(submission_id):
            return _view(self._client.get_job_info(submission_id))

    def logs(self, submission_id: str) -> str:
        with self._about(submission_id):
            return self._client.get_job_logs(submission_id)

    def follow(self, submission_id: str, write: Callable[[str], None]) -> JobView:
        """Write the log as it grows until the job ends; how it ended."""

        async def copy() -> None:
            async for chunk in self._client.tail_job_logs(submission_id):
                write(chunk)

        self.status(submission_id)
        with self._about(submission_id):
            asyncio.run(copy())
        return self.status(submission_id)

    def cancel(self, submission_id: str) -> bool:
        """Ask the job to stop; False if it had ended already."""
        # Ray says that it stops a job for as long as the job's supervisor lives, a moment longer than the job.
        if self.status(submission_id).ended:
            return False
        with self._about(submission_id):
            return self._client.stop_job(submission_id)

    def list(self) -> list[JobView]:
        """Every job of this cluster, the newest first."""
        with self._about("list"):
            submitted = [info for info in self._client.list_jobs() if info.submission_id]
        return sorted((_view(info) for info in submitted), key=lambda job: -(job.started_s or 0.0))

    @contextmanager
    def _about(self, submission_id: str) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if "does not exist" in str(error) or "404" in str(error):
                raise UserError(
                    f"there is no job {submission_id} at {self.address}; `raylign jobs` lists those there are"
                ) from error
            raise RunFailed(f"the job server at {self.address} failed: {_first_line(error)}") from error
        except OSError as error:  # what requests and aiohttp raise when the connection is lost
            raise _unreachable(self.address) from error


def connect(address: str | None, environment: Mapping[str, str] | None = None) -> Jobs:
    """Jobs at the address that is meant. UserError with the fix when nothing answers there."""
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    for name in RAY_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    environment = os.environ if environment is None else environment
    meant = resolve_address(address, environment)
    try:
        with _no_ray_addresses():
            return Jobs(JobSubmissionClient(meant, headers=auth_headers(meant, environment)), meant)
    except AuthenticationError as error:
        raise UserError(
            f"the job server at {meant} wants its token; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to that token"
        ) from error
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        raise _unreachable(meant) from error


def resolve_address(address: str | None, environment: Mapping[str, str]) -> str:
    """--address, else RAYLIGN_ADDRESS, else RAY_ADDRESS, else this machine's job server."""
    named = (environment.get(variable) for variable in ADDRESS_VARIABLES)
    return address or next((value for value in named if value), DEFAULT_ADDRESS)


def auth_headers(address: str, environment: Mapping[str, str]) -> dict[str, str]:
    """This machine's Ray token for a job server on this machine; nothing for another, nor where a mode is set.

    Ray makes a token the first time it starts locally, and every head started afterwards demands it, but its job
    client sends it only with RAY_AUTH_MODE=token. With that set the client does so by itself, to any address.
    """
    if "RAY_AUTH_MODE" in environment or not is_this_machine(address):
        return {}
    token = environment.get("RAY_AUTH_TOKEN", "")
    file = Path(environment.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if not token and file.is_file():
        token = file.read_text().strip()
    return {"Authorization": f"Bearer {token}"} if token else {}


def train_job(
    config_path: Path,
    overrides: Sequence[str],
    *,
    address: str,
    run_dir: str | None,
    submission_id: str | None = None,
    working_dir: Path | None = None,
    resume: bool = False,
    now: datetime | None = None,
) -> JobSpec:
    """A checked `raylign train` job. Every problem of the config is raised here, before anything is shipped.
    working_dir: what the job gets; default the checkout that the recipe lies in, else the recipe's folder."""
    config = load_run(config_path, overrides)
    root, path = (working_dir or folder_of(config_path)).resolve(), config_path.resolve()
    if not path.is_relative_to(root):
        raise UserError(f"{config_path} is outside {root}, which is what the job gets; copy it in there")
    refuse_what_stays_behind(config_path, overrides, root)
    submission_id = submission_id or f"{config.name}-{now or datetime.now():%Y%m%d-%H%M%S}"
    here = is_this_machine(address)
    if run_dir is None:
        if not here:
            raise UserError(
                f"give --run-dir: a path that every node of the cluster at {address} sees, or a URL such as s3://..."
            )
        run_dir = str(Path("runs", submission_id).resolve())
    elif "://" not in run_dir:
        if not here and not os.path.isabs(run_dir):
            raise UserError(f"--run-dir {run_dir} must be an absolute path (seen by every node) or a URL")
        run_dir = os.path.abspath(run_dir)
    if isinstance(config, Pipeline):
        PipelineDirectory(run_dir)  # refuses what cannot hold one
    command = ["-m", "cluster.cli", "train", path.relative_to(root).as_posix(), *overrides, "ray.address=auto"]
    command += ["--run-dir", run_dir, *(["--resume"] if resume else [])]
    entrypoint = f"exec {interpreter()} {shlex.join(command)}"
    return JobSpec(submission_id, entrypoint, str(root), run_dir, code=code_beside(root))


def interpreter() -> str:
    """Shell for the job's interpreter: this one where the head has it too (a local cluster), else the head's own.

    Asked on the head, since a forwarded port makes another machine's job server look like this one's.
    """
    mine = shlex.quote(sys.executable)
    return f"$(test -x {mine} && echo {mine} || echo python)"


def is_this_machine(address: str) -> bool:
    """Whether the job server's host is a loopback name: then paths and the interpreter are the job's too."""
    host = urlsplit(address if "://" in address else f"//{address}").hostname
    return address == "auto" or host in ("127.0.0.1", "localhost", "::1")


@contextmanager
def _no_ray_addresses() -> Iterator[None]:
    """Ray lets its environment variables win over the address it is given; ours was already chosen."""
    names = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
    saved = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(saved)


def _unreachable(address: str) -> UserError:
    return UserError(
        f"no job server answers at {address}; start one with `ray start --head --include-dashboard=true`, "
        f"or name yours with --address or {ADDRESS_VARIABLES[0]}"
    )


def _view(info: Any) -> JobView:
    return JobView(
        submission_id=info.submission_id,
        state=str(info.status.value),
        message=info.message or "",
        run_dir=(info.metadata or {}).get(RUN_DIR_KEY),
        started_s=None if info.start_time is None else info.start_time / 1000,
        ended_s=None if info.end_time is None else info.end_time / 1000,
    )


def _first_line(error: Exception) -> str:
    """Ray puts the server's whole traceback in the text; the last line of it says what is wrong."""
    lines = [line.strip() for line in str(error).replace("\\n", "\n").splitlines() if line.strip(" .'\"")]
    return lines[-1] if lines else type(error).__name__
