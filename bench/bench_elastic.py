"""Workers that join and leave under load: what is lost, and how soon a joiner makes its first token.

A 2-layer model in real vLLM engines, real Ray actors, no learner: prompts stream through the pool, one version is
published, then it is scaled 1 -> 4 -> 1. Every sample is counted by (group, index). A joiner's clock starts when its
engine runs: what remains is the pull of the weights, the proof, and the first decode step.
"""

from __future__ import annotations

import itertools
import os
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path

import ray

from actors.engines.interface import EngineSettings
from actors.transports.buckets import make_buckets
from actors.types import PolicyVersion, Prompt, SamplingSettings, digest_buckets
from bench.tools.common import table
from cluster.config.placement import RolePlan
from cluster.pool.members.roster import Deadlines
from cluster.pool.pool import RolloutPool
from cluster.roles.rollout import RolloutSpec
from cluster.workers import get, put, start_rollout

SAMPLING = SamplingSettings(max_tokens=64, min_tokens=64, samples_per_prompt=4)
IN_FLIGHT, LEAST_S = 24, 5.0


def main() -> None:
    from safetensors.torch import load_file

    from tests.fixtures.tiny_model import make_tiny_model

    with tempfile.TemporaryDirectory() as folder:
        model = make_tiny_model(Path(folder) / "model")
        ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False)
        told: list[tuple[float, str]] = []
        role = RolePlan("rollout", 1, 0, 0, max(1, (os.cpu_count() or 1) // 2))
        settings = EngineSettings(str(model), dtype="float32", max_model_len=128, kv_cache_bytes=1 << 27)
        pool = RolloutPool(
            start_rollout(role, RolloutSpec(settings, "vllm", "cpu", "object_store", 60.0, 60.0)),
            1,
            put=put,
            sequences=32,
            deadlines=Deadlines(300.0, 300.0, 60.0),
            tell=lambda kind, text: told.append((time.monotonic(), text)),
        )
        pool.adopt(PolicyVersion(0, "disk"))
        publish(pool, list(make_buckets(load_file(model / "model.safetensors").items(), 1 << 20)))
        found = stream(pool, told)
        ray.shutdown()
    table(
        "Scaling 1 -> 4 -> 1 under load, 2-layer model, vLLM on CPU",
        ["what", "value"],
        [
            ["samples admitted", found["admitted"]],
            ["samples lost", found["lost"]],
            ["samples counted twice", found["twice"]],
            ["tokens carried from a leaver to another worker", found["carried"]],
            ["from a joiner's engine running to its first token, median of 3 (s)", found["first_token_s"]],
            ["engine start, for scale (s)", found["engine_s"]],
        ],
    )


def publish(pool: RolloutPool, buckets: list) -> None:
    version = PolicyVersion(1, digest_buckets([bucket.digest() for bucket in buckets]))
    refs = [put(bucket) for bucket in buckets]
    pool.begin_publish(1)
    for ref in refs:
        pool.receive(ref)
    pool.finish_publish(version)
    pool.admit(version, refs, None, lambda logprobs: None)


def stream(pool: RolloutPool, told: list[tuple[float, str]]) -> dict[str, float]:
    """Keep the pool loaded through the changes, and count."""
    numbers, under_way, finished = itertools.count(), [], []
    firsts: dict[str, float] = {}

    def turn() -> None:
        done = [future for future in under_way if future.done()]
        for future in done:
            under_way.remove(future)
            finished.append(future.result())
        while len(under_way) < IN_FLIGHT:
            group = next(numbers)
            prompt = Prompt(id=group, token_ids=(2, 5 + group % 50, 7, 11), group=group)
            under_way.append(pool.offer(pool.ticket([prompt], SAMPLING)))
        for name, pulse in pool.pulses().items():
            if pulse.tokens_made and name not in firsts:
                firsts[name] = time.monotonic()
        time.sleep(0.02)

    def until(ready) -> None:
        least = time.monotonic() + LEAST_S
        while not ready() or time.monotonic() < least:
            turn()

    until(lambda: len(finished) > 2 * IN_FLIGHT)
    asked = time.monotonic()
    pool.scale(4)
    until(lambda: len(firsts) == 4)
    pool.scale(1)
    until(lambda: sum("left" in text for _, text in told) == 3)
    admitted = next(numbers)
    finished += [future.result() for future in under_way]
    seen = Counter(
        (int(sample.group), sample.sample_index)
        for done in finished
        for sample in get(done.batch, 60.0, "fetching samples")
    )
    wanted = {(group, index) for group in range(admitted) for index in range(SAMPLING.samples_per_prompt)}
    joined = {name: at for at, text in told for name in [text.split()[0]] if "joined" in text and at > asked}
    ready = {name: at for name, at in pool.ready_at().items() if name in joined}
    return {
        "admitted": len(wanted),
        "lost": len(wanted - seen.keys()),
        "twice": sum(count - 1 for count in seen.values()),
        "carried": sum(done.stats.carried_tokens for done in finished),
        "first_token_s": statistics.median(firsts[name] - ready[name] for name in joined),
        "engine_s": statistics.median(ready[name] - asked for name in joined),
    }


if __name__ == "__main__":
    main()
