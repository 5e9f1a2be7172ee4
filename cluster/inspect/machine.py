"""What this machine has: cores, memory, GPUs, disk. Read without torch, so that no CUDA context is made.

In: nothing but the operating system. Out: `Machine`. Left out: other nodes (workers.on_every_node), what a plan needs.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

GIB = 1 << 30
CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
RAY_ADDRESS_FILE = Path("/tmp/ray/ray_current_cluster")
GCS_PORT = 6379


@dataclass(frozen=True, slots=True)
class Machine:
    """memory, available: bytes of RAM in all and free now. gpus: bytes of memory of each visible GPU."""

    cpus: int
    memory: int
    available: int
    gpus: tuple[int, ...]

    def describe(self) -> str:
        gpus = f"{len(self.gpus)} x {min(self.gpus) / GIB:.0f} GB GPU" if self.gpus else "no GPU"
        return f"{self.cpus} cores, {self.memory / GIB:.1f} GB of memory ({self.available / GIB:.1f} free), {gpus}"


def this_machine() -> Machine:
    found = psutil.virtual_memory()
    memory = min([found.total, *_cgroup_limits()])
    return Machine(os.cpu_count() or 1, memory, min(found.available, memory), visible_gpus(os.environ))


def _cgroup_limits() -> list[int]:
    """A container's own limit, which psutil does not see; `max` means none."""
    texts = [path.read_text().strip() for path in CGROUP_LIMITS if path.is_file()]
    return [int(text) for text in texts if text.isdigit()]


def visible_gpus(environment: Mapping[str, str]) -> tuple[int, ...]:
    """Bytes of memory of each NVIDIA GPU that CUDA_VISIBLE_DEVICES leaves visible; empty where there is no driver."""
    if shutil.which("nvidia-smi") is None:
        return ()
    query = ["nvidia-smi", "--query-gpu=uuid,memory.total", "--format=csv,noheader,nounits"]
    answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    if answer.returncode:
        return ()
    return pick_visible(answer.stdout, environment.get("CUDA_VISIBLE_DEVICES"))


def pick_visible(table: str, visible: str | None) -> tuple[int, ...]:
    """From nvidia-smi's lines `uuid, MiB`, those that CUDA_VISIBLE_DEVICES names by index or UUID (None: all)."""
    rows = [line.split(",") for line in table.splitlines() if line.strip()]
    sizes = [(uuid.strip(), int(mib) << 20) for uuid, mib in rows]
    if visible is None:
        return tuple(size for _, size in sizes)
    wanted = [name.strip() for name in visible.split(",") if name.strip()]
    return tuple(size for i, (uuid, size) in enumerate(sizes) if any(w == str(i) or uuid.startswith(w) for w in wanted))


def existing_parent(path: Path) -> Path:
    """The nearest directory above (or at) `path` that exists: where its files would go."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def unreachable_reason(address: str, environment: Mapping[str, str], timeout_s: float = 2.0) -> str | None:
    """Why no Ray cluster answers at `ray.address`; None if one does, or if Ray is to be started here."""
    if address == "local":
        return None
    where = address
    if address == "auto":
        where = environment.get("RAY_ADDRESS") or (
            RAY_ADDRESS_FILE.read_text().strip() if RAY_ADDRESS_FILE.is_file() else ""
        )
        if not where:
            return "no Ray cluster runs here, got auto; run `ray start --head` first, or set it to local"
    host, _, port = where.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        host, port = where, str(GCS_PORT)
    try:
        socket.create_connection((host, int(port)), timeout_s).close()
    except OSError as error:
        return f"no Ray cluster answers at {where} ({error.strerror or error}); start one there, or set it to local"
    return None
