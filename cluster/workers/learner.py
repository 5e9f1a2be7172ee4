"""One learner group as the driver calls it: every call goes to all ranks, in the same order.

In: columns by reference. Out: references, metrics, weight buckets as they are made. Left out: what a rank does
(cluster/roles/learner.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayError

from actors.transports.interface import Link
from actors.types import WeightSummary
from cluster.config.placement import RolePlan
from cluster.errors import LearnerLost, NoAnswer, RunFailed, StepLost
from cluster.experience.columns import Ref, StepColumns
from cluster.roles.learner import LearnerRole, LearnerSpec
from cluster.workers.calls import first_line, get, options, stop
from cluster.workers.lease import answering, leased, living
from learners.methods.method import UpdateResult, assemble

WATCH_EVERY_S = 1.0
LEFT_BEHIND_S = 60.0
"""For ranks that an earlier driver left to end what it asked of them; building others takes about as long."""
DEATH_KNOWN_S = 60.0
"""Until Ray knows at the latest that a process, or a node, is gone."""


class LearnerGroup:
    """The ranks of one learner group; every call goes to all of them, in the same order. found: whether they are those
    that an earlier driver left, loaded, on whatever weights it left them."""

    heard: Callable[[str], None] = staticmethod(lambda what: None)
    """Hears of every wait of a step as it begins: each has a deadline of its own."""

    def __init__(self, role: RolePlan, spec: LearnerSpec, timeout_s: float) -> None:
        self._role, self._spec = role, spec
        self._timeout_s = timeout_s
        self._started = 0
        self._ranks = self._left_behind()
        self.found = bool(self._ranks)
        if not self.found:
            self._start()

    def _left_behind(self) -> list[Any]:
        """An earlier driver's ranks, if all of them live and none waits for something that will not come."""
        ranks = list(living("learner").values())
        if len(ranks) == self._role.count and answering(ranks, LEFT_BEHIND_S):
            return ranks
        stop(ranks)
        return []

    def _start(self) -> None:
        actor: Any = ray.remote(leased(LearnerRole))
        role = self._role
        again = f".{self._started}" if self._started else ""  # the name of one that was killed is taken for a while
        self._ranks = [
            actor.options(**options(role, f"learner-{rank}{again}")).remote(self._spec, rank, role.count)
            for rank in range(role.count)
        ]
        self._started += 1

    def start_again(self, timeout_s: float) -> None:
        """New ranks in the place of all, on initial weights. LearnerLost if they do not come up."""
        stop(self._ranks)
        self.found = False
        self._start()
        self.wait_built(self.build(timeout_s), timeout_s)

    def build(self, timeout_s: float) -> Ref:
        """Start loading on all ranks; give the result to `wait_built`. Those that were found are loaded."""
        if self.found:
            return []
        address, port = self._get(self._ranks[0].rendezvous.remote(), timeout_s, "starting the learner")
        return [rank.build.remote(address, port) for rank in self._ranks]

    def wait_built(self, refs: Ref, timeout_s: float) -> list[dict[str, float]]:
        return self._get(refs, timeout_s, "loading the learner's models")

    def policy_logprobs(self, chunks: Sequence[Ref], temperature: float | None = None) -> tuple[Ref, ...]:
        return tuple(r.policy_logprobs.remote(temperature, *chunks) for r in self._ranks)

    def reference_logprobs(self, chunks: Sequence[Ref]) -> tuple[Ref, ...]:
        return tuple(r.reference_logprobs.remote(*chunks) for r in self._ranks)

    def values(self, chunks: Sequence[Ref]) -> tuple[Ref, ...]:
        return tuple(r.values.remote(*chunks) for r in self._ranks)

    def wait(self, refs: Sequence[Ref], what: str) -> list[Any]:
        return self._get(list(refs), self._timeout_s, what)

    def update_policy(self, columns: StepColumns, show_rows: tuple[int, ...] = ()) -> UpdateResult:
        layout, refs = columns.arguments()
        done = [r.update_policy.remote(show_rows, layout, *refs) for r in self._ranks]
        return self._get(done, self._timeout_s, "updating the policy")[0]

    def update_critic(self, columns: StepColumns) -> UpdateResult:
        layout, refs = columns.arguments()
        done = [r.update_critic.remote(layout, *refs) for r in self._ranks]
        return self._get(done, self._timeout_s, "updating the critic")[0]

    def row_rewards(self, columns: StepColumns) -> Any:
        """float64 [B]: implicit rewards beta (lp - ref), the policy's log-probs being `columns.old`."""
        return self._from_first("row_rewards", "comparing responses", columns)

    def row_logprobs(self, columns: StepColumns) -> Any:
        """float64 [B, 2]: summed log-probs of trained tokens, `columns.old` being all of them, and their number."""
        return self._from_first("row_logprobs", "summing log-probs", columns)

    def kto_baseline(self, columns: StepColumns) -> float:
        """KTO's reference point from mismatched samples: `columns.old` and `columns.row_reference` are theirs."""
        return self._from_first("kto_baseline", "comparing mismatched responses", columns)

    def row_scores(self, chunks: Sequence[Ref]) -> Any:
        """float32 [B]: a reward model's scores."""
        shares = self._get([r.row_scores.remote(*chunks) for r in self._ranks], self._timeout_s, "scoring rows")
        return assemble(shares, sum(len(share.slots) for share in shares))

    def pick(self, rows: Sequence[int], chunks: Sequence[Ref]) -> Ref:
        """A batch of only these rows of the chunks end to end, two by two as chosen and rejected."""
        return self._ranks[0].pick.remote(list(rows), *chunks)

    def dump(self, columns: StepColumns, path: str) -> None:
        self._from_first("dump", "saving the batch", columns, path)

    def _from_first(self, call: str, what: str, columns: StepColumns, *before: Any) -> Any:
        """Rank 0's answer to a call that is not collective."""
        layout, refs = columns.arguments()
        return self._get(getattr(self._ranks[0], call).remote(*before, layout, *refs), self._timeout_s, what)

    def weights(
        self,
        max_bytes: int,
        timeout_s: float,
        on_parcel: Callable[[Ref], None],
        parcels: bool = False,
        watch: Callable[[], object] = lambda: None,
    ) -> tuple[list[Ref], WeightSummary]:
        """(bucket references, their summary) of the current policy; `on_parcel` hears of what each engine is to take as
        soon as it is there: the buckets themselves, or with `parcels` what the transport makes of each, which follows
        it. `watch` is called now and then while the stream is waited for, and may raise. The driver owns the buckets,
        so they outlive a rank."""
        streams = [r.weights.options(num_returns="streaming").remote(max_bytes) for r in self._ranks]
        refs: list[Ref] = []
        last: Ref | None = None
        for place, ref in enumerate(_drain(streams[0], timeout_s, watch)):
            last = ref
            if parcels and place % 2:
                on_parcel(ref)  # at once: what it announces may be waited for before the stream goes on
                continue
            if refs and not parcels:  # the last is the summary: a bucket is known to be one when another item follows
                on_parcel(refs[-1])
            refs.append(ref)
        for stream in streams[1:]:
            for _ in _drain(stream, timeout_s, watch):
                pass
        # A stream that failed ends with its error, whatever was due there.
        summary = self._get(last, timeout_s, "gathering the weights")
        if not isinstance(summary, WeightSummary):
            raise RunFailed("gathering the weights: the learner's stream ended without a summary")
        return refs[:-1], summary

    def link(self, size: int) -> Link | None:
        """Where a group of so many meets to receive weights; None if the transport needs none."""
        return self._get(self._ranks[0].link.remote(size), self._timeout_s, "opening a group for the weights")

    def release_weights(self) -> None:
        """Every engine has the version that was made last."""
        self._get(self._ranks[0].release_weights.remote(), self._timeout_s, "releasing the weights")

    def copy_bytes_per_s(self, nbytes: int) -> float:
        """How fast rank 0's machine copies so many bytes from memory to memory: what publishing is held against."""
        return self._get(self._ranks[0].copy_bytes_per_s.remote(nbytes), self._timeout_s, "measuring a copy")

    def save(self, directory: str) -> None:
        self._get([r.save.remote(directory) for r in self._ranks], self._timeout_s, "saving the learner's state")

    def saved(self, directory: str) -> dict[str, Any] | None:
        """Size and hash of what `save` was for, by path in `directory`; None while it is being written."""
        asked = [r.saved.remote(directory) for r in self._ranks]
        found = self._get(asked, self._timeout_s, "writing a checkpoint", beside=True)
        if None in found:
            return None
        return {path: facts for files in found for path, facts in files.items()}

    def load(self, directory: str) -> None:
        self._get([r.load.remote(directory) for r in self._ranks], self._timeout_s, "restoring the learner's state")

    def export(self, directory: str, source: str, facts: Mapping[str, Any]) -> None:
        done = [r.export.remote(directory, source, facts) for r in self._ranks]
        self._get(done, self._timeout_s, "exporting the policy")

    def close(self) -> None:
        stop(self._ranks)

    def _get(self, refs: Any, timeout_s: float, what: str, beside: bool = False) -> Any:
        """As `get`; LearnerLost when a rank died or is stuck. beside: asked beside the steps, of which it tells
        nothing."""
        if not beside:
            self.heard(what)
        try:
            return get(refs, timeout_s, what)
        except NoAnswer as error:
            raise LearnerLost(str(error)) from error
        except StepLost:
            raise
        except RunFailed:
            # A rank whose peer died fails in its own words, often before the death is known.
            if len(self._ranks) > 1 and (lost := self._lost_rank()) is not None:
                raise LearnerLost(f"{what}: {lost}") from None
            raise

    def _lost_rank(self) -> str | None:
        """How a rank was lost, if one was; each is asked, and one that waits for a peer for ever is lost too."""
        answers = [rank.__ray_ready__.remote() for rank in self._ranks]
        ready, _ = ray.wait(answers, num_returns=len(answers), timeout=DEATH_KNOWN_S)
        for rank, answer in enumerate(answers):
            if answer not in ready:
                return f"rank {rank} gave no answer within {DEATH_KNOWN_S:g} s"
            try:
                ray.get(answer)
            except RayError as error:
                return f"rank {rank} died ({first_line(error)})"
        return None


def _drain(stream: Any, timeout_s: float, watch: Callable[[], object]) -> Iterator[Ref]:
    """The references of a streaming call; RunFailed when the stream does not come to its end in time."""
    deadline = time.monotonic() + timeout_s
    while True:
        left = deadline - time.monotonic()
        ready, _ = ray.wait([stream], timeout=max(0.0, min(left, WATCH_EVERY_S)), fetch_local=False)
        if not ready:
            watch()
            if left <= 0.0:
                raise LearnerLost(f"gathering the weights: no answer within {timeout_s:g} s")
            continue
        try:
            yield next(stream)
        except StopIteration:
            return
