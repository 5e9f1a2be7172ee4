"""What the autoscaler's decisions do to a pool whose workers are partly on their way, and to a cluster without room."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from actors.rollouts.spans import RolloutSeconds
from cluster.errors import UserError
from cluster.pool.autoscale import WINDOW, AutoscaleSettings
from cluster.pool.usage import PoolLoad
from cluster.training.parts.elastic import Elastic

SETTINGS = AutoscaleSettings(min=1, max=8, target_idle=0.1, cooldown_s=0.0)


class Pool:
    """So many workers, healthy or not, on a cluster that takes `room` of them."""

    def __init__(self, count: int, room: int = 99) -> None:
        self.count, self.room = count, room

    def __len__(self) -> int:
        return self.count

    def scale(self, count: int) -> str:
        if count > self.room:
            raise UserError(f"{self.room - self.count} are free")
        self.count = count
        return f"now {count}"


def elastic(pool: Pool, **changes) -> tuple[Elastic, list]:
    told: list = []
    settings = AutoscaleSettings(**{name: getattr(SETTINGS, name) for name in SETTINGS.__slots__} | changes)
    events = SimpleNamespace(write=lambda kind, text, step, rollout: told.append((text.split(": ")[0], rollout)))
    return Elastic(pool, settings, events), told


def after_a_step(found: Elastic, healthy: int, generate_s: float) -> None:
    """Of a learner that was busy for 4 s."""
    found.autoscale(1, PoolLoad(RolloutSeconds(generate=generate_s), 1, healthy), 4.0, max(4.0, generate_s / healthy))


def test_workers_that_are_on_their_way_are_not_sent_back_by_a_step_that_wants_fewer_than_all():
    """19 and 24 worker-seconds want 5 and 6 workers; 4 serve and 4 more load."""
    pool = Pool(8)
    found, told = elastic(pool)
    for generate_s in (24.0, 19.0) * 2:
        after_a_step(found, 4, generate_s)
    assert len(pool) == 8 and told == []
    after_a_step(found, 4, 24.0)
    assert told == [("now 7", 7)], f"after {WINDOW} steps of which none wanted more than 6, and one at a time"


def test_a_pool_of_which_most_are_being_replaced_keeps_them_all():
    pool = Pool(4)
    found, told = elastic(pool, min=4)
    after_a_step(found, 1, 40.0)
    assert len(pool) == 8 and told == [("now 8", 8)], "one serves, four there are to be, and it wants more"


@pytest.mark.parametrize(("room", "reached"), [(6, 6), (5, 5), (7, 6), (8, 8)])
def test_a_cluster_without_room_for_all_gives_what_it_has(room, reached):
    pool = Pool(4, room)
    found, told = elastic(pool)
    after_a_step(found, 4, 80.0)
    assert len(pool) == reached and told[0][1] == reached
    if reached < 8:
        assert told[0][0] == f"now {reached} (8 were wanted"


def test_a_cluster_without_any_room_is_told_and_changes_nothing():
    pool = Pool(4, 4)
    found, told = elastic(pool)
    after_a_step(found, 4, 80.0)
    assert len(pool) == 4 and told == [("0 are free", 4)]
