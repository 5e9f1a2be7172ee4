"""The process group of one learner group: made by hand from rank, size and address, no launcher.

In: rank, world size, where rank 0 listens, backend, timeout. Out: an initialised torch.distributed default group and
the environment that DeepSpeed reads. Left out: who picks the port and what happens when a peer dies (the group's owner
tears the group down; a collective does not fail by itself before the timeout).
"""

from __future__ import annotations

import os
from datetime import timedelta

import torch
import torch.distributed as dist

BACKENDS = {"cpu": "gloo", "cuda": "nccl"}


def backend_for(device: torch.device) -> str:
    """gloo for CPU, nccl for CUDA."""
    return BACKENDS[device.type]


def init_process_group(
    rank: int, world_size: int, master_addr: str, master_port: int, backend: str, timeout_s: float
) -> None:
    """Join the default group, also when `world_size` is 1. Every rank calls it with the same address and port.

    One process sees one device (its actor's), so its local rank is 0.
    """
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_RANK="0",
        MASTER_ADDR=master_addr,
        MASTER_PORT=str(master_port),
    )
    dist.init_process_group(
        backend,
        init_method=f"tcp://{master_addr}:{master_port}",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=timeout_s),
    )


def destroy_process_group() -> None:
    """Leave the group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()
