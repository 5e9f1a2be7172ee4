"""Fifty kills of real vLLM workers while tickets are under way: every sample comes once.

Two Ray actors over a 2-layer model; a random one is killed some seconds after both serve. Every sample is counted by
(group, index). `make soak` runs this.
"""

from __future__ import annotations

import itertools
import os
import random
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import psutil
import ray

from actors.engines.interface import EngineSettings
from actors.transports.buckets import make_buckets
from actors.types import PolicyVersion, Prompt, SamplingSettings
from bench.bench_elastic import publish
from bench.tools.common import table
from cluster.config.placement import RolePlan
from cluster.pool.members.recovery import RecoveryLimits
from cluster.pool.members.roster import Deadlines
from cluster.pool.pool import RolloutPool
from cluster.roles.rollout import RolloutSpec
from cluster.workers import get, put, start_rollout

WORKERS, KILLS, AHEAD, PAUSE_S = 2, int(os.environ.get("RAYLIGN_SOAK_VLLM_KILLS", "50")), 8, 1.5
SAMPLING = SamplingSettings(max_tokens=64, min_tokens=64, samples_per_prompt=4)


def workers() -> list[psutil.Process]:
    """The rollout workers' processes."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if (
                process.environ().get("RAYLIGN_ROLE", "").startswith("rollout")
                and "RolloutRole" in process.cmdline()[0]
            ):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):  # ended while we looked
            continue
    return found


def soak(pool: RolloutPool) -> dict[str, Any]:
    """Kill, and keep the pool loaded meanwhile; what became of the samples."""
    draw, groups, waiting = random.Random(0), itertools.count(), {}
    seen: Counter[tuple[int, int]] = Counter()
    kills, strike_at = 0, None

    def gather(ended: dict[int, Future[Any]]) -> None:
        for group, future in ended.items():
            del waiting[group]
            for sample in get(future.result().batch, 60.0, "fetching samples"):
                seen[int(sample.group), sample.sample_index] += 1

    while kills < KILLS:
        gather({group: future for group, future in waiting.items() if future.done()})
        while len(waiting) < AHEAD:
            group = next(groups)
            prompt = Prompt(id=group, token_ids=(2, 5 + group % 50, 7, 11), group=group)
            waiting[group] = pool.offer(pool.ticket([prompt], SAMPLING))
        whole = sum(state == "healthy" for _, state, _ in pool.members()) == WORKERS
        if whole and strike_at is None:
            strike_at = time.monotonic() + draw.expovariate(1.0 / PAUSE_S)
        if strike_at is not None and time.monotonic() > strike_at:
            draw.choice(workers()).kill()
            kills, strike_at = kills + 1, None
            print(f"kill {kills}", file=sys.stderr, flush=True)
            while sum(state == "healthy" for _, state, _ in pool.members()) == WORKERS:
                time.sleep(0.01)
        time.sleep(0.02)
    for future in waiting.values():
        future.result()
    gather(dict(waiting))
    wanted = {(group, index) for group in range(next(groups)) for index in range(SAMPLING.samples_per_prompt)}
    return {
        "kills": kills,
        "samples wanted": len(wanted),
        "samples lost": len(wanted - seen.keys()),
        "samples that came twice": sum(count - 1 for count in seen.values()),
    }


def main() -> None:
    from safetensors.torch import load_file

    from tests.fixtures.tiny_model import make_tiny_model

    with tempfile.TemporaryDirectory() as folder:
        model = make_tiny_model(Path(folder) / "model")
        ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False)
        role = RolePlan("rollout", 1, 0, 0, max(1, (os.cpu_count() or 1) // 2))
        settings = EngineSettings(str(model), dtype="float32", max_model_len=128, kv_cache_bytes=1 << 27)
        pool = RolloutPool(
            start_rollout(role, RolloutSpec(settings, "vllm", "cpu", "object_store", 60.0, 60.0)),
            WORKERS,
            put=put,
            sequences=32,
            deadlines=Deadlines(300.0, 300.0, 60.0),
            limits=RecoveryLimits(failures=10 * KILLS, attempts=100, backoff_s=0.1),
        )
        pool.adopt(PolicyVersion(0, "disk"))
        publish(pool, list(make_buckets(load_file(model / "model.safetensors").items(), 1 << 20)))
        began = time.monotonic()
        found = soak(pool)
        took = time.monotonic() - began
        pool.close()
        ray.shutdown()
    table(
        f"{WORKERS} workers over real vLLM engines, killed at random under load",
        ["what", "count"],
        [*([name, value] for name, value in found.items()), ["seconds", round(took)]],
    )
    if found["samples lost"] or found["samples that came twice"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
