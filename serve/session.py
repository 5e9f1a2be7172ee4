"""One serving session on a Ray of its own: start, be ready, and leave nothing behind.

In: a policy, settings, host and port. Out: a context manager that yields the base URL once the door answers. On the
way out (also after Ctrl-C or a failed start) Serve and Ray are shut down and every process that the session started
is gone: an engine's child can outlive the worker that started it, so the session remembers its descendants and ends
them one by one. Left out: a cluster that is already running; there `serve.app:build` goes into a Serve config.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import socket
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from serve.policy import ServedPolicy, ServeInputError
from serve.settings import ServeSettings

APPLICATION = "raylign"
GRACE_S = 10.0
KILL_WAIT_S = 10.0
SHARED_MEMORY = "/dev/shm"
READY_TIMEOUT_S = 30.0
_ENGINE_ERROR = re.compile(r"^\((?:EngineCore|Worker)[^)]*\) ERROR .*?\] (\w+(?:Error|Exception): .+)$", re.MULTILINE)


class ServeFailed(RuntimeError):
    """The engine did not come up: exit code 1. The text is the engine's own last word."""


def require_free_port(host: str, port: int) -> None:
    """Raises ServeInputError when something listens there, or when the host is not this machine's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ServeInputError(
                f"cannot listen on {host}:{port} ({error.strerror}); choose another with --port or --host"
            ) from error


@contextmanager
def serving(policy: ServedPolicy, settings: ServeSettings, host: str, port: int) -> Iterator[str]:
    """Yields the base URL, such as http://127.0.0.1:8000/v1, once it answers."""
    require_free_port(host, port)
    import ray  # the slow imports: only once the input is known to be good
    from ray import serve as ray_serve

    from serve.app import build_application

    others = set(psutil.Process().children(recursive=True))
    scratch, outer = tempfile.mkdtemp(prefix="raylign-serve-"), os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = scratch  # of the processes to come: engines make sockets there
    try:
        # A replica asks for one CPU and one per engine worker; the ingress, the proxy and the controller for none.
        cpus = max(os.cpu_count() or 1, settings.replicas * (1 + max(1, settings.gpus)))
        ray.init(
            address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
        )
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        _on_terminate(_interrupt)  # after ray.init, which installs its own
        ray_serve.start(proxy_location="HeadOnly", http_options={"host": host, "port": port})
        try:
            ray_serve.run(build_application(policy, settings), name=APPLICATION, route_prefix="/")
        except RuntimeError as error:
            # Ray fills this in while it starts, and types it as the None that it is before.
            logs = Path(ray._private.worker._global_node.get_logs_dir_path())  # type: ignore[attr-defined]
            cause = root_cause(logs) or str(error)
            raise ServeFailed(f"the engine did not start: {cause} (its logs are in {logs})") from error
        base = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"
        _wait_until_ready(base)
        yield f"{base}/v1"
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not cut the clean-up short
        _on_terminate(signal.SIG_IGN)
        started = set(psutil.Process().children(recursive=True)) - others
        shared = shared_memory(started)
        try:
            ray_serve.shutdown()
            ray.shutdown()
        finally:
            end_processes(started | set(psutil.Process().children(recursive=True)) - others, GRACE_S)
            for file in shared:
                file.unlink(missing_ok=True)
            shutil.rmtree(scratch, ignore_errors=True)
            os.environ.pop("TMPDIR") if outer is None else os.environ.update(TMPDIR=outer)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            _on_terminate(signal.SIG_DFL)


def shared_memory(processes: set[psutil.Process]) -> set[Path]:
    """Files of shared memory that these have mapped, by their inodes: a semaphore is mapped under a passing name."""
    mapped = set()
    for process in processes:
        try:
            lines = Path(f"/proc/{process.pid}/maps").read_text().splitlines()
        except OSError:  # it has ended
            continue
        mapped |= {int(line.split()[4]) for line in lines if f" {SHARED_MEMORY}/" in line}
    return {Path(e.path) for e in os.scandir(SHARED_MEMORY) if e.inode() in mapped} if mapped else set()


def end_processes(processes: set[psutil.Process], grace_s: float) -> int:
    """Wait for these to end, then end the rest. How many had to be ended. psutil tells a reused id apart."""
    _, alive = psutil.wait_procs(processes, timeout=grace_s)
    for process in alive:
        try:
            process.kill()
        except psutil.NoSuchProcess:  # it ended by itself in between, which is what was wanted
            continue
    psutil.wait_procs(alive, timeout=KILL_WAIT_S)
    return len(alive)


def _wait_until_ready(base: str) -> None:
    """The routes reach the proxy a moment after the application runs."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    while True:
        try:
            with urllib.request.urlopen(f"{base}/healthz", timeout=5):
                return
        except (urllib.error.URLError, TimeoutError) as error:
            if time.monotonic() > deadline:
                raise ServeFailed(f"{base}/healthz does not answer within {READY_TIMEOUT_S:.0f} s: {error}") from error
        time.sleep(0.2)


def root_cause(logs: Path) -> str | None:
    """The first error that an engine process logged: what Serve reports is only that the engine did not start."""
    for file in sorted(logs.glob("worker-*.out")) + sorted(logs.glob("worker-*.err")):
        found = _ENGINE_ERROR.search(file.read_text(errors="replace"))
        if found:
            return found.group(1)
    return None


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _on_terminate(handler: Callable[[int, FrameType | None], Any] | signal.Handlers) -> None:
    signal.signal(signal.SIGTERM, handler)
