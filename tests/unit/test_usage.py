"""Where the pool's seconds went, by hand."""

import pytest

from actors.rollout_server import RolloutSeconds
from cluster.pool.handle import WorkerPulse
from cluster.pool.usage import PoolUsage


def pulse(generate: float, sync: float = 0.0, weights: float = 0.0, prompts: float = 0.0) -> WorkerPulse:
    return WorkerPulse(0, 0, 0.0, RolloutSeconds(generate, sync, weights, prompts))


def test_shares_are_of_what_all_workers_did_since_the_last_look():
    usage = PoolUsage()
    first = usage.since_last({"a": pulse(5.0, prompts=5.0)})
    assert (first.generate, first.wait_prompts) == (5.0, 5.0)
    # b joined in between and counts from its start; a decoded for 3 s more and loaded weights for 1.
    spent = usage.since_last({"a": pulse(8.0, sync=1.0, prompts=5.0), "b": pulse(1.0, weights=3.0)})
    assert (spent.generate, spent.sync, spent.wait_weights, spent.wait_prompts) == (4.0, 1.0, 3.0, 0.0)
    shares = PoolUsage.shares(spent, 2)
    assert shares == {
        "rollout/workers": 2.0,
        "time/rollout_generate_fraction": 0.5,
        "time/rollout_sync_fraction": 0.125,
        "time/rollout_wait_weights_fraction": 0.375,
        "time/rollout_wait_prompts_fraction": 0.0,
    }
    assert sum(share for name, share in shares.items() if name.endswith("_fraction")) == pytest.approx(1.0)


def test_one_that_left_is_forgotten_and_no_time_has_no_shares():
    usage = PoolUsage()
    usage.since_last({"a": pulse(5.0), "b": pulse(1.0)})
    assert usage.since_last({"b": pulse(2.0)}).generate == 1.0
    assert PoolUsage.shares(usage.since_last({"b": pulse(2.0)}), 1) == {"rollout/workers": 1.0}
