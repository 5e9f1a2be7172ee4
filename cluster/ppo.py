"""The synchronous on-policy loop: PPO with a critic, GRPO and its kin without. What a method is, config chose: the
pure functions in learners/ differ, this page does not.

In: a PolicyGradientJob whose workers run. Out: a run directory whose last commit is the last step. A step generates
with version N, learns from it, and publishes N+1 before the next begins, so no sample is ever stale. Left out:
schedules that overlap generation and learning (their own files), everything behind the verbs
(training/policy_gradient.py, training/online.py).
"""

from __future__ import annotations

from cluster.training.policy_gradient import PolicyGradientJob


def train(job: PolicyGradientJob) -> None:
    """Run the steps that are left."""
    if job.state.step == 0:
        job.evaluate(0)
        job.write_row(0)
    for step in job.steps():
        batch = job.batch()
        while batch.lacking:
            with job.phase("rollout"):
                wave = job.generate(job.admit(step, batch.lacking))
            with job.phase("score"):
                batch.add(wave, job.send_to_scorers(wave.samples))
        with job.phase("score"):
            columns = job.score(step, batch)
        with job.phase("update"):
            job.update_critic(columns)
            job.update_policy(columns, batch)
        with job.phase("publish"):
            job.publish()
        job.record(step)
        job.finish_step(step)
        if job.evaluation_due():
            job.evaluate(step)
        job.write_row(step)
        if job.commit_due():
            job.commit()
