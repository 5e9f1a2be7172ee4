"""The node broker: one small actor of the cluster that asks its autoscaler for what all jobs need together.

In: a job's bundles. Out: nothing; nodes come when the autoscaler brings them, and workers that wait for them start. Who
waits for whom: nobody. The broker outlives any one job, and ends itself when none wants anything. Left out: the sum
(demand.py).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import RayError

from cluster.errors import RunFailed
from cluster.workers.calls import first_line, get
from cluster.workers.demand import LEASE_S, Bundle, Demand

NAME, NAMESPACE = "raylign-node-broker", "raylign"
LOOK_EVERY_S = 5.0
ANSWER_S = 60.0


class Broker:
    """What the actor does. lease_s: how long an unrenewed request counts."""

    def __init__(self, lease_s: float) -> None:
        self._me = ray.get_runtime_context().current_actor
        self._demand = Demand(lease_s)
        self._asked: list[dict[str, float]] = []
        self._lock = threading.Lock()
        threading.Thread(target=self._watch, name="leases", daemon=True).start()

    def want(self, job: str, bundles: Sequence[Bundle]) -> None:
        with self._lock:
            self._demand.want(job, bundles)
            self._tell()
            over = not self._asked
        if over:
            ray.actor.exit_actor()

    def asked(self) -> list[dict[str, float]]:
        """What the autoscaler was asked for last."""
        return self._asked

    def _tell(self) -> None:
        from ray.autoscaler.sdk import request_resources

        total = self._demand.total()
        if total != self._asked:
            request_resources(bundles=total)
            self._asked = total

    def _watch(self) -> None:
        """Forget jobs whose lease has lapsed; end with the last of them."""
        wait = threading.Event()
        while not wait.wait(LOOK_EVERY_S):
            with self._lock:
                try:
                    self._tell()
                except Exception as error:  # fault boundary: the head node may be away; the next look asks again
                    logging.getLogger(__name__).warning("the autoscaler could not be asked: %r", error)
                    continue
                over = not self._asked
            if over:
                ray.kill(self._me)


class NodeRequests:
    """A job's end: what it wants, renewed by a thread until it is closed. tell: hears when the broker could not be
    asked; the next renewal does it again, and workers wait for their nodes meanwhile."""

    def __init__(self, job: str, lease_s: float = LEASE_S, tell: Callable[[str], None] = lambda text: None) -> None:
        self._job = job
        self._lease_s = lease_s
        self._tell = tell
        self._bundles: tuple[Bundle, ...] = ()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="node-requests", daemon=True)
        self._thread.start()

    def want(self, bundles: Sequence[Bundle]) -> None:
        """The whole of what the job needs, in place of what it wanted before."""
        with self._lock:
            self._bundles = tuple(bundles)
            self._send()

    def close(self) -> None:
        """Want nothing more."""
        self._closing.set()
        self._thread.join()
        if self._bundles:
            self.want([])

    def _send(self) -> None:
        for attempt in (0, 1):
            try:
                broker: Any = (
                    ray.remote(Broker)
                    .options(name=NAME, namespace=NAMESPACE, lifetime="detached", get_if_exists=True, num_cpus=0)
                    .remote(self._lease_s)
                )
                get(broker.want.remote(self._job, self._bundles), ANSWER_S, "asking the node broker")
                return
            except (RunFailed, RayError, ValueError) as error:
                # It ends itself with the last request. Whoever wants more asks the next one, then or at a renewal.
                if attempt and self._bundles:
                    self._tell(f"nodes could not be asked for: {first_line(error)}")
                if not self._bundles:
                    return

    def _renew(self) -> None:
        while not self._closing.wait(self._lease_s / 4):
            with self._lock:
                if self._bundles:
                    self._send()


def asked_of_autoscaler() -> list[dict[str, float]]:
    """What the broker of this cluster last asked for; nothing without one."""
    try:
        return get(ray.get_actor(NAME, NAMESPACE).asked.remote(), ANSWER_S, "asking the node broker")
    except ValueError:
        return []
