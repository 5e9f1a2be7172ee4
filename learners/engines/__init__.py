"""Train engines: who holds parameters and optimiser of one rank, behind one contract (interface.py). They know no
method.

In: a network (models.py), losses normalised over the whole mini-batch, settings. Out: applied steps, whole parameters
in pieces, a training state on disk that other ranks and stages read. `deepspeed_engine.py` (with zero_shards.py, the
only files that import DeepSpeed) and `torch_engine.py`, its plain twin, pass one suite. Left out: what the loss is
(learners/methods), who calls (the learners), Ray.
"""
