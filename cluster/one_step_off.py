"""One step off: the next batch is generated while this one is learned from, under the weights from before it.

The page is ppo.py's but for four lines: samples are taken from a stream that runs ahead by one batch, and before the
next weights are published the stream settles, so that no sample is made by two policies. In: a StreamingJob whose
workers run. Out: a run directory whose last commit is the last step. Left out: how far ahead is too far
(pool/admission.py), everything behind the verbs (training/streaming.py).
"""

from __future__ import annotations

from cluster.training.streaming import StreamingJob


def train(job: StreamingJob) -> None:
    """Run the steps that are left."""
    if job.state.step == 0:
        job.evaluate(0)
        job.write_row(0)
    job.run_ahead()
    for step in job.steps():
        batch = job.batch()
        while batch.lacking:
            with job.phase("rollout"):
                wave = job.take(batch)
            with job.phase("score"):
                batch.add(wave, job.send_to_scorers(wave.samples))
        with job.phase("score"):
            columns = job.score(step, batch)
        with job.phase("update"):
            job.update_critic(columns)
            job.update_policy(columns, batch)
        with job.phase("rollout"):
            job.settle()
        with job.phase("publish"):
            job.publish()
        job.record(step)
        job.finish_step(step)
        if job.evaluation_due():
            job.evaluate(step)
        job.run_ahead()
        job.write_row(step)
        if job.commit_due():
            job.commit()
