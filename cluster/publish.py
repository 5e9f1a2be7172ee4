"""Publish the policy to the engines, and prove that they run it before they take traffic.

In: the learner group, the rollout pool, recorded samples. Out: the admitted PolicyVersion and what it cost. Two proofs:
*identity*, each engine hashes what it received (RolloutWorker.finish_publish refuses another digest); *application*,
each engine's log-probs of recorded samples differ from the learner's by at most `factor` times what a freshly loaded
engine showed. A fixed bound would prove nothing: bfloat16 alone moves log-probs more than a small step does. Left
out: transports other than the object store.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from actors.probe import mean_mismatch
from actors.types import PolicyVersion
from cluster.columns import Ref
from cluster.errors import RunFailed
from cluster.workers import LearnerGroup, RolloutPool

ROUNDING = 1e-4
"""Nats: float32 kernels of two libraries agree to this, so a tighter bound would fail on rounding alone."""


@dataclass(frozen=True, slots=True)
class Published:
    """seconds from the learner's first gather to the engines' admission; bytes of one version; the largest mean
    |engine - learner| over the engines, in nats."""

    version: PolicyVersion
    seconds: float
    bytes: int
    mismatch: float


class Publisher:
    """Version numbers only grow. The last version's buckets stay in the object store until the next is admitted."""

    def __init__(
        self, pool: RolloutPool, learner: LearnerGroup, *, bucket_bytes: int, timeout_s: float, factor: float
    ) -> None:
        self._pool = pool
        self._learner = learner
        self._bucket_bytes = bucket_bytes
        self._timeout_s = timeout_s
        self._factor = factor
        self._buckets: list[Ref] = []
        self.version = PolicyVersion(0, "")
        self.fresh_mismatch: float | None = None

    def adopt(self, version: PolicyVersion) -> None:
        """The engines hold `version` from disk."""
        self.version = version

    def calibrate(self, probe: Ref) -> float:
        """Measure a freshly loaded engine against the learner, both on the same weights."""
        self.fresh_mismatch = self._mismatch(probe, self._learner.policy_logprobs([probe], temperature=1.0))
        return self.fresh_mismatch

    def publish(self, probe: Ref) -> Published:
        """Move the learner's current weights into every engine as the next version."""
        start = time.monotonic()
        number = self.version.number + 1
        # First, and not beside the engines' loading: on shared cores two thread pools that wait for each other take
        # three times as long (3.2 s against 1.2 s for SmolLM2 on two cores).
        shares = self._learner.policy_logprobs([probe], temperature=1.0)
        self._pool.begin_publish(number)
        buckets, summary = self._learner.weights(self._bucket_bytes, self._timeout_s, self._pool.receive)
        version = PolicyVersion(number, summary.digest)
        self._pool.finish_publish(version, self._timeout_s)
        mismatch = self._mismatch(probe, shares)
        bound = max(self._factor * self.fresh_mismatch, ROUNDING)
        if not mismatch <= bound:
            raise RunFailed(
                f"an engine received version {version.number} but does not compute with it: its log-probs differ from "
                f"the learner's by {mismatch:.4f} nats on average, a freshly loaded engine's by "
                f"{self.fresh_mismatch:.4f} (bound {bound:.4f}); resume to load the engines afresh"
            )
        self._pool.admit(version, self._timeout_s)
        self._buckets, self.version = buckets, version
        return Published(version, time.monotonic() - start, summary.nbytes, mismatch)

    def _mismatch(self, probe: Ref, shares: tuple[Ref, ...]) -> float:
        engines = self._pool.probe(probe, self._timeout_s)
        learner = self._learner.wait(shares, "scoring the recorded samples")
        return max(mean_mismatch(engine, learner) for engine in engines)
