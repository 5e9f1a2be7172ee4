"""What runs inside a worker process, one file a role: rollout, scorer, learner rank. Knows nothing of Ray.

In: frozen specifications, references already resolved. Out: columns, statistics, weight buckets as a stream. Left out:
actors and their placement (cluster/workers), what is learned (learners) or generated (actors).
"""
