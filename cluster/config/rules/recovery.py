"""Rules of `recovery`: a deadline over others is longer than they are, and noise makes nobody slow.

In: a Config. Out: Problems, and the longest wait of a phase. Left out: the deadlines themselves.
"""

from __future__ import annotations

from collections.abc import Iterator

from cluster.config.problem import Problem
from cluster.config.schema import Config

PULSE_S = 1.0
"""How often a rollout worker is asked how it is."""
NOISE = 1.5
"""How much longer than others' a worker's decode steps may take for no reason."""


def longest_wait_s(config: Config) -> float:
    """The longest that a run may be in one phase by its own deadlines."""
    waits = [config.learner.update_timeout_s, config.ray.start_timeout_s]
    if config.algorithm.online:
        waits += [config.rollout.timeout_s * config.recovery.attempts, 3 * config.weights.timeout_s]
    return max(waits)


def recovery_problems(config: Config) -> Iterator[Problem]:
    recovery = config.recovery
    longest = longest_wait_s(config)
    if recovery.watchdog_s is not None and recovery.watchdog_s <= longest:
        yield Problem(
            "recovery.watchdog_s",
            f"must be longer than the longest deadline that it watches over ({longest:g} s), got "
            f"{recovery.watchdog_s:g}; lower rollout.timeout_s, learner.update_timeout_s, weights.timeout_s or "
            "ray.start_timeout_s, or raise it",
        )
    if config.algorithm.online and recovery.silence_s < 2 * PULSE_S:
        yield Problem(
            "recovery.silence_s",
            f"must be at least {2 * PULSE_S:g}: a worker is asked every {PULSE_S:g} s, got {recovery.silence_s:g}",
        )
    if config.algorithm.online and recovery.slow_factor is not None and recovery.slow_factor <= NOISE:
        yield Problem(
            "recovery.slow_factor",
            f"must be more than {NOISE:g}, for equal workers differ by that much, got {recovery.slow_factor:g}; null "
            "lets the slow go on",
        )
    if config.algorithm.online and config.rollout.stall_timeout_s > config.rollout.timeout_s:
        yield Problem(
            "rollout.stall_timeout_s",
            f"must be at most rollout.timeout_s ({config.rollout.timeout_s:g}), or it never acts, got "
            f"{config.rollout.stall_timeout_s:g}",
        )
