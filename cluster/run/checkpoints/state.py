"""What the driver itself must remember across a crash: plain data in the checkpoint's driver.json.

Left out: what workers hold (their own files in the checkpoint) and what can be read from the run directory.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

FILE = "driver.json"
RETIRED = ("kl_ref",)
"""Fields that checkpoints of before may hold and nothing reads: kl_ref was k3's mean, which must end no run."""


@dataclass(slots=True)
class DriverState:
    """step: steps done. position: prompts taken from the order. source: fingerprint of the prompts, so that a resume
    on other data is refused. multiplier: of the safety constraint. fresh_mismatch, fresh_doubt: a freshly loaded engine
    against the learner (actors/engines/probe.py). kl_ref_k1: of the last update, in nats a token. baseline: held-out
    scores before training, by metric. scores: the last evaluation's."""

    step: int = 0
    position: int = 0
    kl_coef: float = 0.0
    multiplier: float = 1.0
    source: str = ""
    failures: int = 0
    nonfinite_in_a_row: int = 0
    best_step: int | None = None
    best_value: float | None = None
    evaluations_since_best: int = 0
    kl_ref_k1: float = 0.0
    fresh_mismatch: float | None = None
    fresh_doubt: float | None = None
    baseline: dict[str, list[float]] = field(default_factory=dict)
    scores: dict[str, list[float]] = field(default_factory=dict)

    def save(self, directory: Path) -> None:
        (directory / FILE).write_text(json.dumps(asdict(self)) + "\n")

    @classmethod
    def load(cls, directory: Path) -> DriverState:
        saved = json.loads((directory / FILE).read_text())
        return cls(**{name: value for name, value in saved.items() if name not in RETIRED})
