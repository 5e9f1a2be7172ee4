"""Workers that outlive the driver that started them, for as long as somebody keeps their run.

In: the run's namespace, in the environment of its driver and workers. Out: workers that end by themselves once their
lease is not renewed; handles of those that an earlier driver left. The lease is a count in the cluster's own key-value
store: the keeper (cluster/life/keeper.py) raises it, each worker looks at it now and then and ends when it has stood
still for LOOKS looks. Looks are counted and not seconds, so that a machine that was paused finds its keeper again, and
a look that fails counts for nothing, so that a head node that is started again ends nobody. Who waits for whom: nobody.
Without a keeper workers belong to their driver, and Ray ends them with it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_put
from ray.util import get_current_placement_group, list_named_actors, remove_placement_group

from cluster.workers.groups import release_all, run_of

LEASE = "RAYLIGN_LEASE"
"""In the environment: the namespace that the run's keeper renews."""
STORE = "raylign-leases"
LOOK_EVERY_S, LOOKS = 4.0, 5
LAST_WORDS_S = 5.0


class Lease:
    """What one worker has seen of its lease."""

    def __init__(self, looks: int = LOOKS) -> None:
        self._looks = looks
        self._seen: bytes | None = None
        self._still = 0

    def over(self, found: bytes | None) -> bool:
        """Whether this look ends it. found: the count, None when it was taken away."""
        self._still = 0 if found != self._seen else self._still + 1
        self._seen = found
        return found is None or self._still >= self._looks


def leased(role: type) -> type:
    """The role as an actor's class: its process ends with the lease, where it has one."""

    class Leased(role):
        def __init__(self, *arguments: Any) -> None:
            follow_lease()
            super().__init__(*arguments)

    Leased.__name__ = Leased.__qualname__ = role.__name__
    return Leased


def follow_lease() -> None:
    """From now on this actor ends when its lease is over."""
    if (namespace := os.environ.get(LEASE)) is None:
        return
    actor, group = ray.get_runtime_context().current_actor, get_current_placement_group()
    threading.Thread(target=_follow, args=(namespace, actor, group), name="lease", daemon=True).start()


def _follow(namespace: str, actor: Any, group: Any) -> None:
    lease, wait = Lease(), threading.Event()
    while not wait.wait(LOOK_EVERY_S):
        try:
            found = _internal_kv_get(namespace, namespace=STORE)
        except Exception:  # fault boundary: the head node is away, and nothing is known of the lease
            continue
        if lease.over(found):
            break
    threading.Timer(LAST_WORDS_S, os._exit, (1,)).start()  # whatever hangs below
    _remove_scratch(namespace)
    if group is not None:
        remove_placement_group(group)  # and this actor with it
    ray.kill(actor)  # not a plain exit: Ray would start it again


def _remove_scratch(namespace: str) -> None:
    """Its keeper may be dead too, and every worker ends now: whoever comes last leaves nothing."""
    scratch = Path(tempfile.gettempdir())
    if scratch.name.startswith(f"{namespace}-"):  # else this node has none, and it is the machine's own
        shutil.rmtree(scratch, ignore_errors=True)


def renew(namespace: str, count: int) -> bool:
    """Whether it was renewed: not while the head node is away, which no worker counts."""
    try:
        _internal_kv_put(namespace, str(count), namespace=STORE)
    except RayError:
        return False
    return True


def end_all(namespace: str) -> list[str]:
    """End every worker whose namespace begins so, and their lease; their names."""
    _internal_kv_del(namespace, namespace=STORE)
    found = [row for row in list_named_actors(all_namespaces=True) if row["namespace"].startswith(namespace)]
    for row in found:
        try:
            ray.kill(ray.get_actor(row["name"], row["namespace"]))
        except ValueError:  # it has ended meanwhile
            continue
    release_all(namespace)
    return [row["name"] for row in found]


def lifetime() -> dict[str, Any]:
    """Options of an actor that outlives this driver, where the run has a lease."""
    return {"lifetime": "detached"} if LEASE in os.environ else {}


def living(role: str) -> dict[str, Any]:
    """Handles of this run's workers of a role that earlier drivers left, by name. Each driver has a namespace of its
    own, which differs from theirs in its last part alone: the name of a worker that died is taken for a while."""
    if LEASE not in os.environ:
        return {}
    run = run_of(ray.get_runtime_context().namespace)
    found: dict[str, Any] = {}
    for row in list_named_actors(all_namespaces=True):
        name, namespace = row["name"], row["namespace"]
        if name.partition("-")[0] == role and run_of(namespace) == run:
            try:
                found[name] = ray.get_actor(name, namespace)
            except ValueError:  # it has ended meanwhile
                continue
    return dict(sorted(found.items(), key=lambda item: numbers(item[0])))


def end_living() -> None:
    """End whatever earlier drivers of this run left."""
    for role in ("learner", "rollout", "scorer"):
        for actor in living(role).values():
            ray.kill(actor)


def numbers(name: str) -> list[int]:
    """`learner-1.2` is [1, 2]."""
    return [int(part) for part in name.partition("-")[2].split(".")]


def answering(actors: Iterable[Any], timeout_s: float) -> bool:
    """Whether each of them answers in time: the call that it has under way has come to its end."""
    asked = [actor.__ray_ready__.remote() for actor in actors]
    ready, _ = ray.wait(asked, num_returns=len(asked), timeout=timeout_s)
    try:
        ray.get(ready)
    except RayError:  # fault boundary: one that is dead does not answer
        return False
    return len(ready) == len(asked)
