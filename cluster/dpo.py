"""The offline preference loop: DPO and its kin.

In: an OfflineJob whose workers run. Out: a run directory whose last commit is the last step. Left out: the loss
(config chose it), everything behind the verbs (training/offline.py).
"""

from __future__ import annotations

from cluster.training.offline import OfflineJob


def train(job: OfflineJob) -> None:
    """Run the steps that are left."""
    if job.state.step == 0:
        job.evaluate(0)
        job.write_row(0)
    for step in job.steps():
        with job.phase("data"):
            columns = job.take(step)
        with job.phase("update"):
            job.update(columns)
        job.finish_step(step)
        if job.evaluation_due():
            job.evaluate(step)
        job.write_row(step)
        if job.commit_due():
            job.commit()
