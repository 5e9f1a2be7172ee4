"""What a learner group waited for: a step's time, divided by cause.

In: the seconds of the driver's phases and of the learner's calls. Out: shares that add up to one. Left out: the rollout
workers' own (pool/usage.py).
"""

from __future__ import annotations

from collections.abc import Mapping


def learner_shares(phases: Mapping[str, float], calls: Mapping[str, float], step_s: float) -> dict[str, float]:
    """`time/learner_<cause>_fraction` of an online step of `step_s` seconds. phases: seconds of rollout, score, publish
    (any may be missing); calls: seconds of the learner's calls by name, those named update_* made in the update phase,
    the others (log-probs, values) while scores are awaited."""
    update = sum(seconds for name, seconds in calls.items() if name.startswith("update_"))
    forward = sum(calls.values()) - update
    causes = {
        "compute": update + forward,
        "wait_samples": phases.get("rollout", 0.0),
        "wait_scores": max(0.0, phases.get("score", 0.0) - forward),
        "sync": phases.get("publish", 0.0),
    }
    causes["other"] = max(0.0, step_s - sum(causes.values()))
    total = sum(causes.values())  # step_s, but for clocks that disagree by a hair
    return {f"time/learner_{cause}_fraction": seconds / total for cause, seconds in causes.items()}
