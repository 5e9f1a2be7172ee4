"""Which transport takes the weights to the engines, and what each needs.

In: a Config and the device of its placement. Out: a name with the reason, or Problems. Left out: the transports
themselves (actors/transports).
"""

from __future__ import annotations

from collections.abc import Iterator

from cluster.config.placement import told_share
from cluster.config.problem import Problem, got
from cluster.config.schema import Config


def choose_transport(config: Config, device: str) -> tuple[str, str]:
    """(name, why). device: "cpu" or "cuda"."""
    wanted = config.weights.transport
    if wanted != "auto":
        return wanted, "named by weights.transport"
    if config.model.lora is not None:
        return "object_store", "an adapter is small"
    if device == "cpu":
        return "object_store", "on CPU all processes of a node read one copy in shared memory"
    return "object_store", "it serves workers that come and go; name collective or cuda_ipc to keep weights on the GPUs"


def hardware_lacks(config: Config, device: str) -> str | None:
    """Why the transport that is named cannot work on this device; None if it can."""
    if not config.algorithm.online or device != "cpu":
        return None
    if config.rollout.sleep_level and config.rollout.engine == "vllm":
        return "rollout.sleep_level: vLLM frees the memory of GPUs only and there is none here; remove it"
    if config.weights.transport == "cuda_ipc":
        return "weights.transport: cuda_ipc shares the memory of a GPU and there is none here; use object_store"
    return None


def transport_problems(config: Config) -> Iterator[Problem]:
    name, path = config.weights.transport, "weights.transport"
    if name in ("auto", "object_store"):
        return
    if config.model.lora is not None:
        yield Problem(path, f"an adapter is small and travels whole, got {name}; use object_store or remove it")
    if name != "sparse_delta" and config.rollout.tensor_parallel > 1:
        yield Problem(
            path,
            f"an engine over {config.rollout.tensor_parallel} devices takes weights in one process only, got {name}; "
            "use object_store",
        )
    share = told_share(config)
    if name == "collective" and share is not None:
        yield Problem(
            path,
            f"NCCL takes a GPU for each end and learner.gpus_per_rank {share:g} lets them share one; use cuda_ipc or "
            "object_store, got collective",
        )
    if name != "cuda_ipc":
        return
    if config.learner.ranks > 1:
        yield Problem(path, f"cuda_ipc is for one rank and one engine on one GPU, got {config.learner.ranks} ranks")
    if share is None:
        yield Problem(
            path,
            "cuda_ipc needs learner and engine on one GPU; set learner.gpus_per_rank below 1 or use object_store, got "
            f"gpus_per_rank {got(config.learner.gpus_per_rank)}",
        )
    if config.rollout.workers > 1 or config.rollout.autoscale is not None:
        yield Problem(path, f"cuda_ipc serves the one worker beside the learner, got {config.rollout.workers} workers")
    if config.recovery.spares:
        yield Problem(
            path, f"a GPU that is shared has no room for spares, got recovery.spares {config.recovery.spares}"
        )
