"""The online DPO loop: pairs are the best and the worst of the samples that the present policy has just made.

In: an OnlinePairsJob whose workers run. Out: a run directory whose last commit is the last step. It differs from
ppo.py in one thing, what is made of the scores: pairs, not advantages. Left out: everything behind the verbs
(training/online_pairs.py, training/online.py).
"""

from __future__ import annotations

from cluster.training.online_pairs import OnlinePairsJob


def train(job: OnlinePairsJob) -> None:
    """Run the steps that are left."""
    if job.state.step == 0:
        job.evaluate(0)
        job.write_row(0)
    for step in job.steps():
        batch = job.batch()
        with job.phase("rollout"):
            wave = job.generate(job.admit(step, batch.lacking))
        with job.phase("score"):
            batch.add(wave, job.send_to_scorers(wave.samples))
            columns = job.pair(step, batch)
        with job.phase("update"):
            job.update(columns)
        with job.phase("publish"):
            job.publish()
        job.record(step)
        job.finish_step(step)
        if job.evaluation_due():
            job.evaluate(step)
        job.write_row(step)
        if job.commit_due():
            job.commit()
