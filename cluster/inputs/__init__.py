"""From the config's `data` and `reward` to what a run works on.

In: a checked config and a tokenizer. Out: prompts and reward functions of an online run (online.py), pairs, judged
responses or conversations of an offline one (stored.py). Left out: reading rows (actors/data), the order in which they
are taken, checks of the whole (inspect).
"""
