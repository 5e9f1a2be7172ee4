"""One question to every node of the cluster.

In: a function. Out: an answer a node, or why it gave none. Left out: what is asked (cluster/inspect/nodes.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


@dataclass(frozen=True, slots=True)
class NodeAnswer:
    """What one node answered; exactly one of `value` and `error` is set."""

    node: str
    value: Any
    error: str | None


def on_every_node(function: Any, *arguments: Any, timeout_s: float) -> list[NodeAnswer]:
    """Run `function(*arguments)` once on each live node, all at once; a node that fails says why."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    task = ray.remote(num_cpus=0)(function)
    refs = [
        task.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False), max_retries=0
        ).remote(*arguments)
        for node in nodes
    ]
    ready, _ = ray.wait(refs, num_returns=len(refs), timeout=timeout_s, fetch_local=False)
    answers = []
    for node, ref in zip(nodes, refs, strict=True):
        name = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
        if ref not in ready:
            answers.append(NodeAnswer(name, None, f"no answer within {timeout_s:g} s"))
            continue
        try:
            answers.append(NodeAnswer(name, ray.get(ref), None))
        except RayError as error:  # fault boundary: one node's failure is a finding, the others still answer
            answers.append(NodeAnswer(name, None, str(error).strip().splitlines()[-1]))
    return answers


def free_resources() -> dict[str, float]:
    """What no worker has taken yet, on the whole cluster: CPU, GPU, ..."""
    return dict(ray.available_resources())
