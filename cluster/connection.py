"""A connection to Ray, local or attached. Left out: the workers (workers.py)."""

from __future__ import annotations

import logging
import signal
import threading
from dataclasses import dataclass, field

import ray


@dataclass(slots=True)
class Cluster:
    """A connection to Ray, local or attached."""

    address: str
    num_cpus: int
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
                logging_level="warning",
            )
            self.started_here = True
        else:
            ray.init(address=self.address, log_to_driver=False, logging_level="warning")

    def resources(self) -> tuple[int, float]:
        """(CPUs, GPUs) of the whole cluster."""
        found = ray.cluster_resources()
        return int(found.get("CPU", 0)), float(found.get("GPU", 0))

    def __exit__(self, *error: object) -> None:
        ray.shutdown()
