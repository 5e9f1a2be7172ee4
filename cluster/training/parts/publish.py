"""Publish the policy to the engines, and prove that they run it before they take traffic.

In: the learner group, the rollout pool, recorded samples. Out: the admitted PolicyVersion and what it cost. Two proofs:
*identity*, each engine hashes what it received (RolloutWorker.finish_publish refuses another digest); *application*,
each engine's log-probs of recorded samples differ from the learner's by at most `factor` times what a freshly loaded
engine showed. A fixed bound would prove nothing: bfloat16 alone moves log-probs more than a small step does. Left
out: how bytes travel (actors/transports).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from actors.engines.probe import Mismatch, mismatch
from actors.types import PolicyVersion, WeightSummary
from cluster.errors import RunFailed, StepLost
from cluster.experience.columns import Ref
from cluster.pool.pool import RolloutPool
from cluster.workers import LearnerGroup

ROUNDING = 1e-4
"""Nats: float32 kernels of two libraries agree to this, so a tighter bound would fail on rounding alone."""


@dataclass(frozen=True, slots=True)
class Published:
    """seconds of the whole, proof included, and of them `load_seconds` from the learner's first gather until the last
    engine has loaded the version and proved its digest; bytes of one version, and how many engines took it; the largest
    mean |engine - learner| over the engines, in nats, None where no engine was left to take it."""

    version: PolicyVersion
    seconds: float
    load_seconds: float
    bytes: int
    engines: int
    mismatch: float | None

    def metrics(self) -> dict[str, float]:
        found = {
            "sync/bytes": float(self.bytes),
            "throughput/sync_bytes_per_s": self.bytes * self.engines / self.load_seconds,
        }
        return found if self.mismatch is None else {**found, "sync/mismatch": self.mismatch}


class Publisher:
    """Version numbers only grow. The last version's buckets stay in the object store until the next is admitted, and
    with them what a worker that joins meanwhile is judged by. record: hears of a version before any engine takes
    traffic at it, so that no driver after this one gives its number again."""

    def __init__(
        self,
        pool: RolloutPool,
        learner: LearnerGroup,
        *,
        bucket_bytes: int,
        timeout_s: float,
        factor: float,
        transport: str = "object_store",
        record: Callable[[PolicyVersion], None] = lambda version: None,
    ) -> None:
        self._pool = pool
        self._learner = learner
        self._bucket_bytes = bucket_bytes
        self._timeout_s = timeout_s
        self._factor = factor
        self._parcels = transport != "object_store"
        self._record = record
        self._fresh: Mismatch | None = None
        self.version = PolicyVersion(0, "")
        self._given = 0
        """The last number that was given."""
        self.broken_off = False
        """The last publish did not come to its end: engines may hold a part of it, and decode nothing until another."""

    def adopt(self, version: PolicyVersion) -> None:
        """The engines hold `version` from disk."""
        self.version, self._given = version, version.number

    def recalibrate(self, fresh: Mismatch) -> None:
        """What freshly loaded engines were measured to be, before these."""
        self._fresh = fresh

    def calibrate(self, recorded: Ref) -> Mismatch:
        """Measure a freshly loaded engine against the learner, both on the same weights."""
        shares = self._learner.policy_logprobs([recorded], temperature=1.0)
        engines = self._pool.probe(recorded)
        if not engines:
            raise RunFailed("no engine is left to measure against the learner; start again")
        learner = self._learner.wait(shares, "scoring the recorded samples")
        fresh = max((mismatch(engine, learner) for engine in engines.values()), key=lambda found: found.mean)
        if not np.isfinite(fresh.mean):
            raise RunFailed("the engines or the learner give log-probs that are not finite, before any training")
        self._fresh = fresh
        self._pool.calibrated(recorded, self._judge(learner))
        return fresh

    def publish(self, recorded: Ref) -> Published:
        """Move the learner's current weights into every engine as the next version."""
        start = time.monotonic()
        number = self._given + 1
        # First, and not beside the engines' loading: on shared cores two thread pools that wait for each other take
        # three times as long (3.2 s against 1.2 s for SmolLM2 on two cores).
        shares = self._learner.policy_logprobs([recorded], temperature=1.0)
        learner = self._learner.wait(shares, "scoring the recorded samples")
        sending, self.broken_off = time.monotonic(), True
        buckets, summary = self._send(number)
        version = PolicyVersion(number, summary.digest)
        self._pool.finish_publish(version)
        loaded = time.monotonic()
        engines = self._pool.probe(recorded)
        judge = self._judge(learner)
        wrong = {name: words for name, engine in engines.items() if (words := judge(engine)) is not None}
        if wrong and len(wrong) == len(engines):
            raise RunFailed(f"an engine {next(iter(wrong.values()))}; resume to load the engines afresh")
        for name, words in wrong.items():
            self._pool.expel(name, f"it {words}")
        self._given = number
        self._record(version)
        self._pool.admit(version, buckets, recorded, judge)
        self.version, self.broken_off = version, False
        if self._parcels:
            self._learner.release_weights()
        worst = max((mismatch(engines[name], learner).mean for name in engines.keys() - wrong.keys()), default=None)
        return Published(version, time.monotonic() - start, loaded - sending, summary.nbytes, len(engines), worst)

    def _send(self, number: int) -> tuple[list[Ref], WeightSummary]:
        """Every bucket to every worker of this publish, by the run's transport."""
        members, linked = self._pool.begin_publish(number)
        if self._parcels and not linked and (link := self._learner.link(len(members) + 1)) is not None:
            self._pool.connect(link)
            linked = True
        # Who only pulls can be lost without the others.
        watch = self._pool.watch_publish if linked else self._pool.lose_failed
        try:
            return self._learner.weights(self._bucket_bytes, self._timeout_s, self._pool.receive, self._parcels, watch)
        except StepLost:
            raise
        except RunFailed as error:
            if linked and self._pool.lose_failed():
                # Ranks may be anywhere in the gather: nothing can be sent to those that are left.
                raise StepLost(f"{error}: an engine died in a group that all wait in") from error
            if linked:
                self._pool.watch_publish()  # an engine's own failure tells more than that the learner waited for it
                if lagging := self._pool.unanswered():
                    raise RunFailed(f"{error} (not through with it: {', '.join(lagging)})") from error
            raise

    def _judge(self, learner: list) -> Callable[[np.ndarray], str | None]:
        """What is wrong with an engine's log-probs of the samples that the learner's are of; None if nothing is."""
        fresh, factor = self._fresh, self._factor
        if fresh is None:
            raise RuntimeError("engines are judged by what fresh ones were measured to be: calibrate first")

        def judge(engine: np.ndarray) -> str | None:
            found = mismatch(engine, learner)
            bound = fresh.bound(factor, found.doubt, ROUNDING)
            if found.mean <= bound:
                return None
            return (
                "received the published version but does not compute with it: its log-probs differ from the learner's "
                f"by {found.mean:.4f} nats on average, a freshly loaded engine's by {fresh.mean:.4f} (bound "
                f"{bound:.4f})"
            )

        return judge
