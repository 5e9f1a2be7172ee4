"""The process that holds a run's cluster and its workers' lease while drivers come and go.

In: `python -m cluster.life.keeper ADDRESS CPUS TIMEOUT_S NAMESPACE`, its standard input held open by the supervisor.
Out: one line of JSON once the cluster stands, a renewed lease until the input ends; then every worker of the run is
ended, and a local cluster with them, and their temporary files removed. Who waits for whom: drivers for that line; the
keeper for nobody. It hears no signal that is meant for the run, and a supervisor that is killed ends it as well. Left
out: what drivers do, when they are started (supervisor.py), the lease (cluster/workers/lease.py).
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, field
from typing import IO, Any

import psutil

RETRY_S = 3.0
WATCH_EVERY_S = 1.0
PARTS = ("gcs_server", "raylet")
"""Processes without which a cluster is none."""
END_S = 30.0
"""For ending the workers and a local cluster; then it is killed, and the kernel ends the cluster's processes."""


@dataclass(frozen=True, slots=True)
class Keeping:
    """What a keeper is asked to keep. cpus: of a cluster that is started here. timeout_s: for it to stand, or to be
    there. namespace: what those of the run's workers begin with."""

    address: str
    cpus: int
    timeout_s: float
    namespace: str


@dataclass(slots=True)
class Keeper:
    """The supervisor's end of one."""

    keeping: Keeping
    line: str | None = field(init=False, default=None)
    """What drivers are told; None until the cluster stands."""
    _process: subprocess.Popen[str] = field(init=False)
    _input: IO[str] = field(init=False)
    _output: IO[str] = field(init=False)

    def __post_init__(self) -> None:
        k = self.keeping
        command = [sys.executable, "-m", "cluster.life.keeper", k.address, str(k.cpus), str(k.timeout_s), k.namespace]
        # Of a cluster that does not answer the driver's own check tells more than Ray's warnings.
        quiet = {} if k.address == "local" else {"RAY_BACKEND_LOG_LEVEL": "error"}
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            process_group=0,
            env={**quiet, **os.environ},
        )
        assert self._process.stdin is not None and self._process.stdout is not None, "both are pipes"
        self._input, self._output = self._process.stdin, self._process.stdout

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def look(self, wait_s: float) -> bool:
        """Whether it is known, after waiting so long at most, where the cluster is."""
        if self.line is None and self.alive and select.select([self._output], [], [], wait_s)[0]:
            self.line = self._output.readline() or None
        return self.line is not None

    def end(self) -> None:
        """Returns when the run's workers, and a local cluster, are gone. Also for one that was killed."""
        if self.line is None:
            self._process.kill()  # there is nothing yet that would have to be told
        self._input.close()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._output.close()
        if self.line is not None:
            shutil.rmtree(json.loads(self.line)["scratch"], ignore_errors=True)


def _join(keeping: Keeping) -> Any:
    """A cluster that is away for a while is waited for."""
    from cluster.life.connection import Cluster

    deadline = time.monotonic() + keeping.timeout_s
    while True:
        try:
            return Cluster(keeping.address, keeping.cpus).__enter__()
        except ConnectionError:
            if keeping.address == "local" or time.monotonic() > deadline:
                raise
            time.sleep(RETRY_S)


def _end_with(parts: list[psutil.Process]) -> None:
    """End this process when one of the cluster's that it started has ended: a local head does not come back."""
    while all(part.is_running() and part.status() != psutil.STATUS_ZOMBIE for part in parts):
        time.sleep(WATCH_EVERY_S)
    print("the local Ray cluster is gone: one of its processes ended", file=sys.stderr, flush=True)
    os._exit(1)


def main(keeping: Keeping) -> None:
    from cluster.life.connection import joining
    from cluster.workers import lease

    cluster, over = _join(keeping), threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # Ray has set its own handlers
    lease.renew(keeping.namespace, 0)
    scratch = tempfile.mkdtemp(prefix=f"{keeping.namespace}-")
    print(json.dumps(asdict(joining(keeping.namespace, scratch))), flush=True)

    def until_the_end() -> None:
        sys.stdin.read()
        over.set()

    threading.Thread(target=until_the_end, name="supervisor", daemon=True).start()
    parts = [child for child in psutil.Process().children() if child.name() in PARTS]
    if parts:  # none where the cluster was joined
        threading.Thread(target=_end_with, args=(parts,), name="cluster", daemon=True).start()
    count = 0
    while not over.wait(lease.LOOK_EVERY_S / 2):
        count += 1
        lease.renew(keeping.namespace, count)
    parts.clear()
    threading.Timer(END_S, os._exit, (1,)).start()
    lease.end_all(keeping.namespace)
    cluster.__exit__(None, None, None)
    shutil.rmtree(scratch, ignore_errors=True)  # a worker that is ending may write its last
    os._exit(0)  # the timer would be waited for


if __name__ == "__main__":
    address, cpus, timeout_s, namespace = sys.argv[1:]
    main(Keeping(address, int(cpus), float(timeout_s), namespace))
