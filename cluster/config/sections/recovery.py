"""The `recovery` section: what a run bears before it gives up. Data only.

In: nothing. Out: a pydantic model. Left out: what is done about a failure (cluster/training/recovery.py,
cluster/pool).
"""

from __future__ import annotations

from pydantic import Field

from cluster.config.sections.section import Count, Positive, Seconds, Section


class Recovery(Section):
    """Failures of machines that a run bears, by who fails; each is ended and replaced. Failures of data (a reward
    without a value, a loss that is not finite) have limits of their own."""

    worker_failures: int = Field(default=20, ge=0)
    """Rollout workers that may be lost."""
    spares: int = Field(default=0, ge=0)
    """Rollout workers that run without work, ready to take the place of one that is lost, or to join when asked."""
    attempts: Count = 3
    """Workers on which the same prompts may fail."""
    scorer_failures: int = Field(default=20, ge=0)
    """Times that each scorer may be started again."""
    learner_failures: int = Field(default=5, ge=0)
    """Times that the learner group may be built again; the steps since the last checkpoint are repeated."""
    driver_failures: int = Field(default=5, ge=0)
    """Times that the driver may be started again."""
    backoff_s: Seconds = 1.0
    """Before a replacement is started; twice as long after each that failed too within five minutes."""
    watchdog_s: Seconds | None = None
    """A run that does not move for so long is stuck: every process writes its stacks and the driver is started again;
    default: half as long again as the longest of the deadlines of a phase."""
    silence_s: Seconds = 30.0
    """A rollout worker that answers nothing for so long is ended."""
    slow_factor: Positive | None = 5.0
    """A rollout worker whose decode steps take so many times longer than the others' hands its work on, rests for half
    a minute, longer each time, and proves the weights again; null: none does. None does in deterministic runs either,
    for a sample that moves half-made may differ in its last bits, nor where engines sleep (rollout.sleep_level), for
    only a publish wakes them."""
