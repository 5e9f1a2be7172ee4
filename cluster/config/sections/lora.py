"""The `model.lora` section: data only.

In: nothing. Out: a pydantic model. Left out: what it excludes (cluster/config/rules/lora.py), what an adapter is
(actors/models/lora.py).
"""

from __future__ import annotations

from typing import Literal

from cluster.config.sections.section import Count, Positive, Section


class Lora(Section):
    """Train a low-rank adapter, W + (alpha / rank) B A, and hold the model still."""

    rank: Count = 16
    """Columns of B and rows of A."""
    alpha: Positive = 32.0
    """Scales the adapter, divided by the rank."""
    targets: Literal["all-linear"] | list[str] = "all-linear"
    """Modules to adapt, by the ends of their names (q_proj, down_proj, ...); default every linear layer but the
    output head."""
    export: Literal["merged", "adapter"] = "merged"
    """What an export holds: whole weights with the adapter merged in, or the adapter as a PEFT directory."""
