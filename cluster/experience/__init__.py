"""A step's samples as the driver holds them while they come in: references, ids, lengths, scores; never tokens.

In: waves of samples from the pool and scores from the scorers. Out: a step's `StepColumns` for the learners, once it
has the prompts it wants. Left out: generating (pool), scoring (workers), what a learner does with the columns.
"""
