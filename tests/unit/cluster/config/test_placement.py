"""Who gets which processors: on CPU roles take turns on all cores, on GPUs each has its own or a share."""

import pytest

from cluster.config.placement import plan, shortage
from tests.fixtures.configs import DPO, GRPO, config


def test_on_cpu_each_role_s_processes_divide_all_cores():
    found = plan(config(GRPO, "learner.ranks=2", "rollout.workers=4"), cpus=8, gpus=0)
    assert (found.device, found.gpus) == ("cpu", 0)
    assert [(r.role, r.count, r.threads) for r in found.roles] == [
        ("learner", 2, 4),
        ("rollout", 4, 2),
        ("scorer", 1, 1),
    ]


def test_roles_that_work_at_once_have_half_the_cores_each():
    ahead = ["rollout.schedule.kind=asynchronous", "rollout.workers=2"]
    found = plan(config(GRPO, *ahead), cpus=8, gpus=0)
    assert (found.role("learner").threads, found.role("rollout").threads) == (4, 2)
    assert plan(config(GRPO, *ahead), cpus=1, gpus=0).role("learner").threads == 1
    assert plan(config(GRPO, *ahead), cpus=8, gpus=8).role("learner").threads == 8, "on GPUs they do not share cores"


def test_more_processes_than_cores_get_one_thread_each():
    found = plan(config(GRPO, "learner.ranks=4"), cpus=2, gpus=0)
    assert found.role("learner").threads == 1


def test_threads_given_in_the_config_are_kept():
    found = plan(config(GRPO, "learner.threads=3", "rollout.threads=5"), cpus=2, gpus=0)
    assert (found.role("learner").threads, found.role("rollout").threads) == (3, 5)


def test_a_preference_run_has_learners_only():
    assert [r.role for r in plan(config(DPO), cpus=2, gpus=0).roles] == ["learner"]


def test_on_gpus_every_learner_rank_and_worker_has_its_own():
    found = plan(config(GRPO, "learner.ranks=4", "rollout.workers=2", "rollout.tensor_parallel=2"), cpus=16, gpus=8)
    assert found.device == "cuda"
    assert (found.role("learner").gpus, found.role("rollout").gpus, found.role("scorer").gpus) == (1.0, 2.0, 0)
    assert found.gpus == 8
    assert shortage(found, 8) is None


def test_a_learner_that_takes_half_a_gpu_leaves_the_other_half_to_a_worker():
    found = plan(config(GRPO, "learner.gpus_per_rank=0.25", "rollout.gpu_memory_utilization=0.7"), cpus=4, gpus=1)
    assert (found.role("learner").gpus, found.role("rollout").gpus) == (0.25, 0.75)
    assert (found.colocated, found.shared, shortage(found, 1)) == (True, None, None)


def test_with_one_gpu_learner_and_engine_share_it_and_the_plan_says_so():
    found = plan(config(GRPO), cpus=2, gpus=1)
    assert (found.role("learner").gpus, found.role("rollout").gpus) == (0.6, 0.4)
    assert (found.gpus, found.colocated, shortage(found, 1)) == (1, True, None)
    assert found.shared == (
        "1 learner rank and 1 engine share 1 GPU: each on a GPU of its own they would take 2, and there is 1"
    )


@pytest.mark.parametrize("gpus", [0, 2, 8])
def test_nothing_is_shared_where_each_has_its_own_or_there_is_no_gpu(gpus):
    found = plan(config(GRPO), cpus=2, gpus=gpus)
    assert (found.shared, found.colocated) == (None, False)
    assert [r.gpus for r in found.roles] == ([1.0, 1.0, 0] if gpus else [0, 0, 0])


@pytest.mark.parametrize(
    ("ranks", "workers", "gpus", "shares", "used"),
    [
        (2, 1, 2, (0.6, 0.4), 2),
        (4, 4, 4, (0.6, 0.4), 4),
        (4, 4, 7, (0.6, 0.4), 4),
        # One rank meets no other, so it may take the smaller share, and engines the larger, which keeps them apart.
        (1, 4, 4, (0.4, 0.6), 4),
    ],
)
def test_who_could_meet_its_like_on_a_gpu_takes_more_than_half_of_one(ranks, workers, gpus, shares, used):
    found = plan(config(GRPO, f"learner.ranks={ranks}", f"rollout.workers={workers}"), cpus=8, gpus=gpus)
    assert (found.role("learner").gpus, found.role("rollout").gpus) == shares
    assert found.gpus == used
    assert (f"; {gpus - used} stay idle" in found.shared) == (gpus > used)


def test_spares_are_engines_too_and_count_among_those_that_share():
    found = plan(config(GRPO, "recovery.spares=1"), cpus=8, gpus=2)
    assert found.shared.startswith("1 learner rank and 2 engines share 2 GPUs: ")
    assert shortage(plan(config(GRPO, "recovery.spares=1"), cpus=8, gpus=1), 1).endswith("set recovery.spares to 0")


@pytest.mark.parametrize(
    ("overrides", "gpus", "expected"),
    [
        (
            ["learner.ranks=2", "rollout.workers=3"],
            4,
            "the plan needs 5 GPUs (2 x learner at 1, 3 x rollout at 1) and there are 4; a GPU holds one learner rank "
            "and one engine: set rollout.workers to 2",
        ),
        (
            ["learner.ranks=4", "rollout.workers=4"],
            1,
            "the plan needs 8 GPUs (4 x learner at 1, 4 x rollout at 1) and there is 1; a GPU holds one learner rank "
            "and one engine: set learner.ranks to 1, rollout.workers to 1",
        ),
        (
            ["rollout.tensor_parallel=2"],
            2,
            "the plan needs 3 GPUs (1 x learner at 1, 1 x rollout at 2) and there are 2; a GPU holds one learner rank "
            "and one engine: set rollout.tensor_parallel to 1",
        ),
        (
            ["weights.transport=collective"],
            1,
            "the plan needs 2 GPUs (1 x learner at 1, 1 x rollout at 1) and there is 1; a GPU holds one learner rank "
            "and one engine: set weights.transport to object_store",
        ),
        (
            ["learner.gpus_per_rank=1"],
            1,
            "the plan needs 2 GPUs (1 x learner at 1, 1 x rollout at 1) and there is 1; lower learner.ranks or "
            "rollout.workers, or remove learner.gpus_per_rank to share",
        ),
    ],
    ids=["engines", "ranks", "an engine over two", "a broadcast", "a share that is given"],
)
def test_what_cannot_be_shared_is_named_with_the_need_of_each_role_and_the_way_out(overrides, gpus, expected):
    assert shortage(plan(config(GRPO, *overrides), cpus=8, gpus=gpus), gpus) == expected


def test_over_several_nodes_a_gpu_that_stays_idle_could_be_two_engines_own():
    """A node of two GPUs and one of one: Ray chooses the node first, and 2 x 0.4 fit on the third GPU."""
    pairs = ["learner.ranks=2", "rollout.workers=2"]
    assert plan(config(GRPO, *pairs), cpus=8, gpus=3).shared, "one node: where the least room is left"
    cluster = config(GRPO, *pairs, "ray.address=auto")
    assert shortage(plan(cluster, cpus=8, gpus=3), 3) == (
        "the plan needs 4 GPUs (2 x learner at 1, 2 x rollout at 1) and there are 3; a GPU holds one learner rank and "
        "one engine: set rollout.workers to 1"
    )
    assert plan(cluster, cpus=8, gpus=2).shared, "no GPU stays idle"
    one_engine = config(GRPO, "learner.ranks=3", "ray.address=auto")
    assert shortage(plan(one_engine, cpus=8, gpus=3), 3) is None


def test_a_preference_run_on_fewer_gpus_than_ranks_is_told_how_many_it_can_have():
    found = plan(config(DPO, "learner.ranks=4"), cpus=8, gpus=2)
    assert shortage(found, 2) == (
        "the plan needs 4 GPUs (4 x learner at 1) and there are 2; a GPU holds one learner rank: set learner.ranks to 2"
    )


def test_engines_without_a_learner_have_whole_gpus_and_are_as_many_as_those():
    given = config(GRPO, "learner.gpus_per_rank=0.5", "rollout.workers=4", "learner.ranks=4", "recovery.spares=1")
    for gpus, engines in ((1, 1), (3, 3), (8, 4), (0, 4)):
        found = plan(given, cpus=8, gpus=gpus, training=False)
        assert [r.role for r in found.roles] == ["rollout", "scorer"]
        assert (found.role("rollout").count, found.role("rollout").gpus) == (engines, 1.0 if gpus else 0)
        assert (found.colocated, shortage(found, gpus)) == (False, None)
    large = config(GRPO, "rollout.tensor_parallel=4")
    assert shortage(plan(large, cpus=8, gpus=2, training=False), 2) == (
        "the plan needs 4 GPUs (1 x rollout at 4) and there are 2; lower rollout.tensor_parallel"
    )
