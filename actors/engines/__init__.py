"""Rollout engines: what turns prompts into sampled tokens with their log-probs, behind one contract (interface.py).

In: a model's directory, settings, prompts, weight buckets. Out: `StepOutput`s, one a decode step; log-probs of recorded
samples. `vllm/` is the engine of real runs, `torch_engine.py` its plain twin; both draw tokens as sampling.py says and
pass one suite. Left out: who calls them and when (actors/rollouts), how buckets travel (actors/transports).
"""
