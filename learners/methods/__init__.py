"""What a method is: pure functions from tensors to advantages and losses, and the presets that name them.

In: log-probs, scores, values, masks, settings. Out: losses with metrics, advantages, coefficients; every mean over the
whole global mini-batch (aggregation.py). presets.py and method.py are data and import no torch, so that the config can
make them. Left out: models, forwards, engines, ranks: nothing here knows where its tensors come from.
"""
