"""The autoscaler against steps whose best number of workers is known by hand, on a clock that the test moves."""

import pytest

from cluster.pool.autoscale import WINDOW, Autoscaler, AutoscaleSettings, StepLoad

PLAIN = AutoscaleSettings(min=1, max=16, target_idle=0.1, cooldown_s=30.0)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def scaler(**changes) -> tuple[Autoscaler, Clock]:
    clock = Clock()
    settings = {name: getattr(PLAIN, name) for name in PLAIN.__slots__} | changes
    return Autoscaler(AutoscaleSettings(**settings), clock), clock


def load(workers: int, generate_s: float, learner_s: float, step_s: float | None = None) -> StepLoad:
    return StepLoad(workers, generate_s, learner_s, step_s or max(generate_s / workers, learner_s))


def test_the_need_is_what_keeps_the_learner_s_wait_at_its_target():
    found, _ = scaler()
    assert found.need(load(2, 19.0, 4.0)) == 5, "19 * 0.9 / 4 = 4.3"
    assert found.need(load(2, 8.0, 7.2)) == 1, "8 * 0.9 / 7.2 = 1 exactly"
    assert found.need(load(2, 1e6, 1.0)) == 16 and found.need(load(2, 0.0, 5.0)) == 1


def test_where_they_take_turns_all_of_the_generating_is_waiting():
    found, _ = scaler(overlap=False, target_idle=0.5)
    assert found.need(load(1, 12.0, 4.0, 16.0)) == 3, "12 / 3 + 4 = 8 s, of which half is waiting"


def test_a_worker_that_costs_more_than_the_waiting_it_ends_is_not_asked_for():
    """G = 12, L = 3, four workers keep the learner busy. Prices with cost 0.5: 1.5 * 12, 2 * 6, 2.5 * 4, 3 * 3."""
    assert scaler(target_idle=0.0, cost=0.5)[0].need(load(1, 12.0, 3.0)) == 4
    # With a worker as dear as the learner: 2 * 12, 3 * 6, 4 * 4, 5 * 3.
    assert scaler(target_idle=0.0, cost=1.0)[0].need(load(1, 12.0, 3.0)) == 4
    # Taking turns: (1 + n) (12 / n + 3) is 30, 27, 28, 30: two workers are the cheapest, though four wait less.
    turns, _ = scaler(target_idle=0.3, cost=1.0, overlap=False)
    assert turns.need(load(1, 12.0, 3.0, 15.0)) == 2


def test_it_grows_at_once_to_at_most_double_and_says_why():
    found, _ = scaler()
    decision = found.decide(load(2, 19.0, 4.0))
    assert decision.workers == 4
    assert decision.reason == (
        "the learner waited for 58% of the step, the target is 10%: 19.0 worker-seconds of decoding for 4.0 s of "
        "learning"
    )


def test_fewer_than_the_least_become_the_least_at_once():
    found, _ = scaler(min=6)
    assert found.decide(load(2, 0.1, 4.0)).workers == 6


def test_it_leaves_a_pool_alone_that_is_right():
    found, clock = scaler()
    for _ in range(3 * WINDOW):
        clock.now += 60
        assert found.decide(load(5, 19.0, 4.0)) is None


def test_nothing_is_decided_while_the_last_decision_is_young():
    found, clock = scaler()
    assert found.decide(load(1, 19.0, 4.0)).workers == 2
    clock.now = 29.0
    assert found.decide(load(1, 19.0, 4.0)) is None, "the second worker is still starting"
    clock.now = 30.0
    assert found.decide(load(2, 19.0, 4.0)).workers == 4


def test_it_shrinks_one_by_one_and_only_after_a_whole_window_in_which_fewer_would_do():
    found, clock = scaler()
    decisions = []
    for step in range(WINDOW + 2):
        clock.now += 60
        # In the third step five are needed: the window begins anew behind it only when it has left it.
        decisions.append(found.decide(load(5, 19.0 if step == 2 else 8.0, 4.0)))
    assert decisions == [None] * (WINDOW + 2)
    clock.now += 60
    decision = found.decide(load(5, 8.0, 4.0))
    assert (decision.workers, decision.reason) == (4, "2 workers would have done in each of the last 5 steps")


def test_the_bounds_hold():
    found, clock = scaler(min=2, max=3)
    assert found.decide(load(2, 100.0, 1.0)).workers == 3
    for _ in range(WINDOW):
        clock.now += 60
        decision = found.decide(load(3, 0.1, 10.0))
    assert decision.workers == 2
    for _ in range(3 * WINDOW):
        clock.now += 60
        assert found.decide(load(2, 0.1, 10.0)) is None


@pytest.mark.parametrize("demand", [3.0, 11.0, 40.0])
def test_a_steady_demand_settles_on_the_fewest_workers_and_stays(demand):
    """A loop of the policy with the workers that it asked for."""
    found, clock = scaler()
    workers, seen = 1, []
    for _ in range(60):
        clock.now += 60
        decision = found.decide(load(workers, demand, 2.0))
        workers = decision.workers if decision else workers
        seen.append(workers)
    fewest = next(n for n in range(1, 17) if n == 16 or 1 - 2.0 / max(demand / n, 2.0) <= 0.1)
    assert seen[-20:] == [fewest] * 20
