"""How fast a rollout worker decodes, as numbers that another thread may read and another process compare.

In: nothing. Out: a frozen record. Left out: counting (worker.py), who is slow (cluster/pool/members/straggler.py).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pace:
    """The decode steps of a worker since its start, and the one under way. seconds: of the `steps` that have ended.
    tokens: that these read or made; a prompt's count when its first response token comes. running: requests that have
    one; unread: prompt tokens of those that have none, longest: of the longest prompt among them. step_s: how long the
    step under way has run, 0 between two."""

    steps: int = 0
    seconds: float = 0.0
    tokens: int = 0
    running: int = 0
    unread: int = 0
    longest: int = 0
    step_s: float = 0.0
