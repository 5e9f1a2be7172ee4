"""What produces experience: prompts, rollout engines, rewards and scorers.

In: rows, models, weights. Out: the frozen columns of types.py, the only thing that crosses a process: samples with
log-probs and versions, scores. durable.py is how files outlive a power cut. Left out: Ray, optimisers, who runs where.
"""
