"""What consumes experience: one class a learner, each one rank's updates under its methods.

In: a step's columns, settings. Out: updates with metrics, log-probs and values, weights to publish, exported models.
base.py is what all share. Left out: Ray, vLLM, who holds parameters (engines), what the losses are (methods).
"""
