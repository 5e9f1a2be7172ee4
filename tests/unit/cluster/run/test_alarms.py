"""Signs of a run gone wrong, on rows made by hand: each begins once, ends once, and stays silent on a healthy run."""

from __future__ import annotations

import pytest

from cluster.run.records.alarms import WATCHED, WINDOW, Alarms
from learners.methods.policy_losses import CURVES

HEALTHY = {
    "reward/mean": 0.2,
    "reward/std": 0.3,
    "kl/ref_k1": 0.01,
    "response/length_mean": 50.0,
    "policy/entropy": 1.0,
    "policy/mismatch": 0.01,
}
HACKED = {"reward/mean": 0.9, "kl/ref_k1": 0.5, "response/length_mean": 120.0}


def said(*parts: tuple[dict[str, float], int]) -> list[str]:
    alarms = Alarms()
    return [text for changes, steps in parts for _ in range(steps) for _, text in alarms.hear(HEALTHY | changes)]


def test_a_run_that_only_gets_better_raises_none():
    assert said(({}, WINDOW), ({"reward/mean": 0.9, "kl/ref_k1": 0.09, "policy/entropy": 0.4}, 3 * WINDOW)) == []


@pytest.mark.parametrize("missing", HACKED)
def test_reward_kl_and_length_together_are_a_sign_of_gaming_and_no_two_of_them(missing):
    found = said(({}, WINDOW), (HACKED, WINDOW))
    assert found == [
        "the reward rose from 0.2 to 0.55 while the KL to the reference rose from 0.01 to 0.26 and responses went from "
        "50 to 85 tokens: read some samples, the reward may be gamed; raise algorithm.kl.coef"
    ]
    assert said(({}, WINDOW), ({k: v for k, v in HACKED.items() if k != missing}, WINDOW)) == []


def test_responses_that_shrink_are_as_odd():
    assert len(said(({}, WINDOW), (HACKED | {"response/length_mean": 5.0}, WINDOW))) == 1


def test_an_entropy_that_collapses_is_told_once_and_its_return_once():
    found = said(({}, WINDOW), ({"policy/entropy": 0.01, "reward/std": 0.0}, 2 * WINDOW), ({}, WINDOW))
    assert found == [
        "the policy's entropy fell from 1 to 0.01 nats a token and rewards' spread from 0.3 to 0: there is little left "
        "to learn from; lower learner.optimizer.lr or raise the temperature",
        "entropy collapse: no longer so",
    ]


def test_an_engine_that_drifts_from_its_learner_is_told():
    assert "engine and learner differ by" in said(({}, WINDOW), ({"policy/mismatch": 0.2}, WINDOW))[0]


def test_metrics_that_a_method_has_not_raise_nothing():
    alarms = Alarms()
    rows = [{"reward/mean": 0.2 if n < WINDOW else 0.9, "policy/entropy": 1.0} for n in range(3 * WINDOW)]
    assert [text for row in rows for _, text in alarms.hear(row)] == []


def test_a_run_that_goes_on_knows_its_first_steps_and_tells_nothing_again():
    rows = [*[HEALTHY] * WINDOW, *[HEALTHY | HACKED] * WINDOW]
    alarms = Alarms(rows)
    assert list(alarms.hear(HEALTHY | HACKED)) == [], "told before it was interrupted"
    assert [t for _ in range(WINDOW) for _, t in alarms.hear(HEALTHY)] == ["reward hacking: no longer so"]
    assert list(Alarms([*rows, HEALTHY | {"kl/ref_k1": None}]).hear(HEALTHY | HACKED)) == [], "one was not finite"


@pytest.mark.parametrize("at", [WINDOW // 2, 2 * WINDOW])
def test_a_step_without_finite_numbers_is_a_sign_of_nothing(at):
    nothing = dict.fromkeys(HEALTHY, float("nan"))
    assert said(({}, at), (nothing, 1), ({}, 2 * WINDOW)) == []
    assert len(said(({}, at), (nothing, 1), ({}, 2 * WINDOW), (HACKED, WINDOW))) == 1, "and hides none"


def test_no_mean_of_an_exponential_is_watched():
    """One token would move it past any floor, for the ten steps that are compared."""
    assert not WATCHED & set(CURVES)
    spike = HACKED | {"kl/ref_k1": 0.05} | dict.fromkeys(CURVES, 68.5)
    assert said(({}, WINDOW), (spike, 1), (HACKED | {"kl/ref_k1": 0.05}, WINDOW)) == []
