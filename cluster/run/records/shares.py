"""Where a step's time went: by phase of the driver, by role, and what the learner group waited for.

In: the seconds of the driver's phases and of each role's calls. Out: metrics; shares add up to one. Left out: the
rollout workers' own (cluster/pool/usage.py).
"""

from __future__ import annotations

from collections.abc import Mapping


def calls_of(row: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Seconds of every role's calls, by role and call, from a step's `role/<role>/<call>_s`."""
    calls: dict[str, dict[str, float]] = {}
    for name, seconds in row.items():
        if name.startswith("role/"):
            _, role, call = name.split("/")
            calls.setdefault(role, {})[call.removesuffix("_s")] = seconds
    return calls


def step_times(
    phases: Mapping[str, float], calls: Mapping[str, Mapping[str, float]], step_s: float
) -> dict[str, float]:
    """A step's `time/*` and `sync/seconds`. time/idle_fraction is of the roles that do most of the work."""
    found = {"sync/seconds" if name == "publish" else f"time/{name}_s": seconds for name, seconds in phases.items()}
    found |= {"time/step_s": step_s, "time/other_fraction": max(0.0, 1.0 - sum(phases.values()) / step_s)}
    busy = [sum(calls[role].values()) for role in ("rollout", "learner") if role in calls]
    if busy:
        found["time/idle_fraction"] = max(0.0, 1.0 - sum(busy) / (len(busy) * step_s))
    if len(busy) == 2:
        found |= learner_shares(phases, calls["learner"], step_s)
    return found


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
