"""What jobs want of a cluster's nodes: summed, replaced, forgotten."""

from cluster.config.placement import Placement, RolePlan
from cluster.workers.demand import Demand, bundles_of

GPUS = Placement(
    (
        RolePlan("learner", 2, cpus=1, gpus=1, threads=8),
        RolePlan("rollout", 1, cpus=1, gpus=2.0, threads=8),
        RolePlan("scorer", 1, cpus=1, gpus=0, threads=1),
    ),
    "cuda",
)


def test_a_run_wants_a_bundle_for_each_of_its_processes():
    learner, rollout, scorer = {"CPU": 1.0, "GPU": 1.0}, {"CPU": 1.0, "GPU": 2.0}, {"CPU": 1.0}
    assert bundles_of(GPUS, 3) == [learner, learner, rollout, rollout, rollout, scorer]
    free = Placement((RolePlan("rollout", 1, cpus=0, gpus=0, threads=1),), "cpu")
    assert bundles_of(free, 4) == []


def test_jobs_requests_add_up_and_a_new_one_replaces_the_jobs_last():
    demand = Demand(clock=lambda: 0.0)
    demand.want("a", [{"CPU": 1.0}])
    demand.want("b", [{"GPU": 1.0}, {"GPU": 1.0}])
    assert demand.total() == [{"CPU": 1.0}, {"GPU": 1.0}, {"GPU": 1.0}]
    demand.want("b", [{"GPU": 1.0}])
    assert demand.total() == [{"CPU": 1.0}, {"GPU": 1.0}]
    demand.want("a", [])
    demand.want("never asked", [])
    assert demand.total() == [{"GPU": 1.0}]


def test_a_job_that_does_not_renew_is_forgotten():
    now = [0.0]
    demand = Demand(lease_s=10.0, clock=lambda: now[0])
    demand.want("lives", [{"CPU": 1.0}])
    demand.want("died", [{"CPU": 2.0}])
    now[0] = 8.0
    demand.want("lives", [{"CPU": 1.0}])
    now[0] = 12.0
    assert demand.total() == [{"CPU": 1.0}]
    now[0] = 19.0
    assert demand.total() == []
