"""A version's stream from a learner's rank through Ray: what the engines are handed, and whose fault a failure is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import ray

from actors.types import WeightSummary
from cluster.errors import RunFailed
from cluster.life.connection import Cluster
from cluster.workers import get
from cluster.workers.learner import LearnerGroup

SUMMARY = WeightSummary("digest", 3)


class Rank:
    """A rank whose stream is given; an exception in it is raised there."""

    def weights(self, items: list[Any]) -> Iterator[Any]:
        for item in items:
            if isinstance(item, Exception):
                raise item
            yield item


@pytest.fixture(scope="module")
def group() -> Iterator[LearnerGroup]:
    with Cluster("local", 1):
        made = LearnerGroup.__new__(LearnerGroup)
        made._ranks, made._timeout_s = [ray.remote(Rank).remote()], 30.0
        yield made


def stream(group: LearnerGroup, items: list[Any], parcels: bool) -> tuple[list[Any], list[Any], Any]:
    """(what the engines were handed, the buckets, the summary)."""
    handed: list[Any] = []
    refs, summary = group.weights(items, 30.0, handed.append, parcels)
    return get(handed, 30.0, "reading"), get(refs, 30.0, "reading"), summary


def test_without_a_transport_of_its_own_engines_get_the_buckets(group: LearnerGroup) -> None:
    assert stream(group, ["b0", "b1", SUMMARY], False) == (["b0", "b1"], ["b0", "b1"], SUMMARY)


def test_with_one_they_get_its_parcels_and_joiners_the_buckets(group: LearnerGroup) -> None:
    assert stream(group, ["b0", "p0", "b1", "p1", SUMMARY], True) == (["p0", "p1"], ["b0", "b1"], SUMMARY)


@pytest.mark.parametrize("parcels", [False, True])
@pytest.mark.parametrize("before", [0, 1, 2, 3])
def test_a_learner_that_fails_is_the_one_that_is_named(group: LearnerGroup, before: int, parcels: bool) -> None:
    items = [*["b0", "p0", "b1", "p1"][:before], MemoryError("no room")]
    with pytest.raises(RunFailed, match="gathering the weights: MemoryError: no room"):
        stream(group, items, parcels)


def test_a_stream_that_just_ends_is_no_version(group: LearnerGroup) -> None:
    with pytest.raises(RunFailed, match="the learner's stream ended without a summary"):
        stream(group, ["b0", "p0"], True)


def test_who_watches_may_end_the_wait(group: LearnerGroup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.workers.learner.WATCH_EVERY_S", 0.05)

    def watch() -> None:
        raise RunFailed("publishing: rollout-1: out of memory")

    stuck = LearnerGroup.__new__(LearnerGroup)
    stuck._ranks, stuck._timeout_s = [ray.remote(Stuck).remote()], 30.0
    with pytest.raises(RunFailed, match="rollout-1: out of memory"):
        stuck.weights(0, 30.0, lambda ref: None, True, watch)


class Stuck:
    def weights(self, max_bytes: int) -> Iterator[Any]:
        import time

        yield "b0"
        time.sleep(60)
