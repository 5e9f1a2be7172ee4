"""What a run says of itself, step by step: metrics, samples, spans of time, and the statistics of evaluations.

In: a step's numbers, samples and spans. Out: metrics.jsonl, events.jsonl, samples, timeline.jsonl and whatever tracker
the config names; intervals and shares computed from them. Left out: how a person sees them (console, report), what a
resume needs (checkpoints, ledger).
"""
