"""A connection to Ray: started here, attached to, or kept by the run's supervisor. Left out: the workers (workers/)."""

from __future__ import annotations

import functools
import json
import logging
import os
import signal
import threading
from dataclasses import dataclass, field

import ray
from ray._raylet import Config  # type: ignore[attr-defined]  # compiled, and its stubs do not name it

from cluster.errors import RunFailed
from cluster.life.kept import KEPT, Kept

AUTHENTICATION = "RAY_AUTH_MODE"
"""Ray turns its tokens on by itself for a cluster that it starts, and not for one that is joined at an address."""


@functools.cache
def kept() -> Kept | None:
    """Where the supervisor keeps this driver's cluster; waits for it to say so. None for a driver without one."""
    number = os.environ.pop(KEPT, None)
    if number is None:
        return None
    with os.fdopen(int(number)) as pipe:
        told = pipe.read()
    if not told:
        raise RunFailed("the process that keeps the Ray cluster ended before the cluster stood; its words are above")
    found = Kept(**json.loads(told))
    if found.authentication is not None and AUTHENTICATION not in os.environ:
        os.environ[AUTHENTICATION] = found.authentication
        Config.initialize("")  # Ray has read its environment already
    return found


@dataclass(slots=True)
class Cluster:
    """A connection to Ray. namespace: of the named workers; None for one of this connection alone."""

    address: str
    num_cpus: int
    namespace: str | None = None
    started_here: bool = field(init=False, default=False)

    def __enter__(self) -> Cluster:
        here = threading.current_thread() is threading.main_thread()
        asked = signal.getsignal(signal.SIGTERM) if here else None
        self._connect()
        if here and asked is not None:
            signal.signal(signal.SIGTERM, asked)  # Ray puts its own handler in the place of ours
        return self

    def _connect(self) -> None:
        # Ray announces its own token authentication at every start; a local cluster's user can do nothing about it.
        logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
        if self.address == "local":
            ray.init(
                address="local",
                num_cpus=self.num_cpus,
                include_dashboard=False,
                log_to_driver=False,
                configure_logging=True,
                logging_level=logging.WARNING,
                namespace=self.namespace,
            )
            self.started_here = True
        else:
            ray.init(address=self.address, log_to_driver=False, logging_level=logging.WARNING, namespace=self.namespace)

    def resources(self) -> tuple[int, float]:
        """(CPUs, GPUs) of the whole cluster."""
        found = ray.cluster_resources()
        return int(found.get("CPU", 0)), float(found.get("GPU", 0))

    def __exit__(self, *error: object) -> None:
        ray.shutdown()


def joining(namespace: str, scratch: str) -> Kept:
    """How others join the cluster that this process is connected to."""
    return Kept(ray.get_runtime_context().gcs_address, namespace, os.environ.get(AUTHENTICATION), scratch)
