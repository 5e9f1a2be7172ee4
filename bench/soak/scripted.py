"""A thousand kills of rollout workers that are real processes over scripted engines, while tickets and publishes go on.

Four workers; a random one is killed at random moments. Every ticket must end once, with the samples that its prompts
have whoever makes them; publishes go on. `make soak` runs this and the kills of real runs.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from collections import Counter
from concurrent.futures import Future
from typing import Any

import torch

from actors.transports.buckets import make_buckets
from actors.types import PolicyVersion, Prompt, SamplingSettings, digest_buckets
from bench.tools.common import table
from bench.tools.process_rollout import ProcessRollout
from cluster.pool.members.recovery import RecoveryLimits
from cluster.pool.members.roster import Deadlines
from cluster.pool.pool import RolloutPool

WORKERS, KILLS, AHEAD = 4, int(os.environ.get("RAYLIGN_SOAK_KILLS", "1000")), 24
SAMPLING = SamplingSettings(max_tokens=8, samples_per_prompt=2)


class Killer(threading.Thread):
    """Kills a random living worker now and then; `killed`: how many."""

    def __init__(self, made: dict[str, ProcessRollout], pause_s: float) -> None:
        super().__init__(daemon=True)
        self._made, self._pause_s = made, pause_s
        self._draw = random.Random(0)
        self.killed = 0

    def run(self) -> None:
        while self.killed < KILLS:
            time.sleep(self._draw.expovariate(1.0 / self._pause_s))
            alive = [worker for worker in list(self._made.values()) if worker.process.is_alive()]
            if alive:
                self._draw.choice(alive).process.kill()
                self.killed += 1


def expected(group: int) -> list[list[int]]:
    return [[100 * group + 10 * i + t for t in range(8)] for i in range(SAMPLING.samples_per_prompt)]


def main() -> None:
    made: dict[str, ProcessRollout] = {}

    def start(name: str) -> Any:
        made[name] = ProcessRollout(name)
        return made[name]

    pool = RolloutPool(
        start,
        WORKERS,
        put=lambda value: value,
        sequences=16,
        deadlines=Deadlines(30.0, 60.0, 30.0),
        limits=RecoveryLimits(failures=10 * KILLS, attempts=100, silence_s=5.0, progress_s=20.0, backoff_s=0.01),
    )
    pool.adopt(PolicyVersion(0, "disk"))
    killer = Killer(made, pause_s=0.25)
    ended: Counter[int] = Counter()
    wrong: list[int] = []
    waiting: dict[int, Future[Any]] = {}
    group, version = 0, 0
    began = published = time.monotonic()
    killer.start()
    while killer.is_alive() or waiting:
        while killer.is_alive() and len(waiting) < AHEAD:
            group += 1
            waiting[group] = pool.offer(pool.ticket([Prompt(id=group, token_ids=(1, 2), group=group)], SAMPLING))
        for each in [each for each, future in waiting.items() if future.done()]:
            finished = waiting.pop(each).result()
            ended[each] += 1
            if [s.token_ids.tolist() for s in finished.batch] != expected(each):
                wrong.append(each)
        if time.monotonic() - published > 0.5:
            version += 1
            publish(pool, version)
            published = time.monotonic()
        time.sleep(0.001)
    took = time.monotonic() - began
    pool.close()
    left = [worker.name for worker in made.values() if worker.process.is_alive()]
    table(
        f"{WORKERS} scripted workers as processes, killed at random while tickets and publishes go on",
        ["what", "count"],
        [
            ["kills", killer.killed],
            ["tickets offered", group],
            ["tickets lost", group - len(ended)],
            ["tickets ended twice", sum(n > 1 for n in ended.values())],
            ["tickets with other samples than theirs", len(wrong)],
            ["versions published meanwhile", version],
            ["processes left behind", len(left)],
            ["seconds", round(took)],
        ],
    )
    if group != len(ended) or wrong or left or any(n > 1 for n in ended.values()):
        sys.exit(1)


def publish(pool: RolloutPool, number: int) -> None:
    buckets = list(make_buckets([("a", torch.full((64,), float(number)))], max_bytes=1 << 20))
    version = PolicyVersion(number, digest_buckets([bucket.digest() for bucket in buckets]))
    pool.begin_publish(number)
    for bucket in buckets:
        pool.receive(bucket)
    pool.finish_publish(version)
    pool.admit(version, buckets, None, lambda logprobs: None)


if __name__ == "__main__":
    main()
