"""What the kinds of run are put together from, each usable by itself.

In: workers, columns, a job's records. Out: scores settled, samples written, held-out prompts evaluated, a reference's
sums, versions published and proved, workers that come and go, a stream of prompts, a learner restored. Left out: when
each is done (the jobs and their pages).
"""
