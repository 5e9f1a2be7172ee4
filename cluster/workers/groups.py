"""Placement groups of single workers: found again by name, because a group outlives its worker and a driver both.

In: a worker's name, what it takes. Out: its group. Left out: workers (rollout.py), how long they live (lease.py).
"""

from __future__ import annotations

from typing import Any

import ray
from ray._raylet import PlacementGroupID
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group


def run_of(namespace: str) -> str:
    """What the namespaces of all drivers of a run begin with: each adds a last part of its own."""
    return namespace.rpartition("-")[0]


def reserve(name: str, bundle: dict[str, float], lifetime: str | None) -> PlacementGroup:
    """A group for this worker alone."""
    run = run_of(ray.get_runtime_context().namespace)
    return placement_group([bundle], name=f"{run}/{name}", lifetime=lifetime)


def release(name: str) -> None:
    """Give back what was reserved for this worker, if anything was."""
    run = run_of(ray.get_runtime_context().namespace)
    release_all(f"{run}/{name}", whole=True)


def release_all(prefix: str, whole: bool = False) -> None:
    """Give back every group whose name begins so (whole: is so)."""
    table: dict[str, dict[str, Any]] = placement_group_table()
    for key, row in table.items():
        mine = row["name"] == prefix if whole else row["name"].startswith(prefix)
        if mine and row["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(key))))
