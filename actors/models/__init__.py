"""Transformers models as scorers and learners alike use them: loaded, packed, run forward, adapted.

In: a model's path or hub id, rows of samples. Out: log-probs and entropies of response tokens (forward.py, packing.py,
attention.py), a frozen reference's log-probs (reference.py), a reward model's scores (reward_model.py), adapters put on
(adapters.py, lora.py). Left out: gradients and optimisers (learners), sampling (actors/engines).
"""
