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
    assert shortage(found, 1) is None


def test_too_few_gpus_are_named_with_the_need_of_each_role_and_the_way_out():
    found = plan(config(GRPO, "learner.ranks=2", "rollout.workers=3"), cpus=8, gpus=4)
    assert shortage(found, 4) == (
        "the plan needs 5 GPUs (2 x learner at 1, 3 x rollout at 1) and there are 4; lower learner.ranks or "
        "rollout.workers, or set learner.gpus_per_rank below 1 to share"
    )


@pytest.mark.parametrize("gpus", [0, 1])
def test_the_same_config_fits_without_gpus_and_not_with_one(gpus):
    found = plan(config(GRPO), cpus=2, gpus=gpus)
    assert (shortage(found, gpus) is None) == (gpus == 0)
