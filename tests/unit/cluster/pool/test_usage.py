"""Where the pool's seconds went, and the learner's, by hand."""

import pytest

from actors.rollouts.spans import RolloutSeconds
from cluster.pool.members.handle import WorkerPulse
from cluster.pool.usage import PoolUsage
from cluster.run.records.shares import learner_shares


def pulse(
    generate: float, sync: float = 0.0, weights: float = 0.0, prompts: float = 0.0, engine: float = 0.0, tokens: int = 0
) -> WorkerPulse:
    return WorkerPulse(tokens, 0, 0.0, RolloutSeconds(generate, sync, weights, prompts, engine))


def test_shares_are_of_what_all_workers_did_since_the_last_look():
    usage = PoolUsage()
    first = usage.since_last({"a": pulse(5.0, prompts=5.0)}).seconds
    assert (first.generate, first.wait_prompts) == (5.0, 5.0)
    # b joined in between and counts from its start; a decoded for 3 s more and loaded weights for 1.
    load = usage.since_last({"a": pulse(8.0, sync=1.0, prompts=5.0), "b": pulse(1.0, weights=3.0)})
    spent = load.seconds
    assert (spent.generate, spent.sync, spent.wait_weights, spent.wait_prompts) == (4.0, 1.0, 3.0, 0.0)
    shares = load.metrics()
    assert shares == {
        "rollout/workers": 2.0,
        "time/rollout_generate_fraction": 0.5,
        "time/rollout_sync_fraction": 0.125,
        "time/rollout_wait_weights_fraction": 0.375,
        "time/rollout_wait_prompts_fraction": 0.0,
    }
    assert sum(share for name, share in shares.items() if name.endswith("_fraction")) == pytest.approx(1.0)


def test_tokens_per_second_are_the_pools_while_it_decodes_and_unknown_while_it_does_not():
    usage = PoolUsage()
    usage.since_last({"a": pulse(5.0, engine=4.0, tokens=1000)})
    # a: 300 tokens in 2 s, 1.5 of them the engine's; b, new: 100 in 1 s, 0.5 the engine's. 400 tokens in 1.5 s each.
    found = usage.since_last(
        {"a": pulse(7.0, engine=5.5, tokens=1300), "b": pulse(1.0, engine=0.5, tokens=100)}
    ).metrics()
    assert found["throughput/tokens_per_s"] == pytest.approx(400 / 1.5)
    assert found["throughput/engine_tokens_per_s"] == pytest.approx(400 / 1.0)
    still = {"a": pulse(7.0, prompts=9.0, engine=5.5, tokens=1300), "b": pulse(1.0, engine=0.5, tokens=100)}
    assert not [name for name in usage.since_last(still).metrics() if name.startswith("throughput/")]


def test_one_that_was_away_counts_from_where_it_stood_and_no_time_has_no_shares():
    usage = PoolUsage()
    usage.since_last({"a": pulse(5.0, tokens=50), "b": pulse(1.0)})
    assert usage.since_last({"b": pulse(2.0)}).seconds.generate == 1.0
    back = usage.since_last({"a": pulse(6.0, tokens=58), "b": pulse(2.0)})
    assert (back.seconds.generate, back.tokens, back.workers) == (1.0, 8, 2)
    assert usage.since_last({"b": pulse(2.0)}).metrics() == {"rollout/workers": 1.0}


def test_a_learners_step_is_divided_by_what_it_waited_for():
    """10 s: 4 of rollouts, 2 of scoring in which it computed log-probs for 1.5, 3 of updates, 0.5 of publishing."""
    phases = {"rollout": 4.0, "score": 2.0, "update": 3.2, "publish": 0.5}
    shares = learner_shares(phases, {"reference": 1.0, "values": 0.5, "update_policy": 2.0, "update_critic": 1.0}, 10.0)
    assert shares == {
        "time/learner_compute_fraction": pytest.approx(0.45),
        "time/learner_wait_samples_fraction": pytest.approx(0.4),
        "time/learner_wait_scores_fraction": pytest.approx(0.05),
        "time/learner_sync_fraction": pytest.approx(0.05),
        "time/learner_other_fraction": pytest.approx(0.05),
    }
    assert sum(learner_shares({}, {"update_policy": 1.0}, 1.0).values()) == pytest.approx(1.0)
