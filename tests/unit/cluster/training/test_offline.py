"""The workers of a run on stored rows: what stands when one of them fails to start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.config.placement import plan
from cluster.errors import NoAnswer
from cluster.training import offline
from cluster.training.parts.logbook import Run
from tests.fixtures.configs import DPO, config


@pytest.mark.parametrize("error", [NoAnswer("starting the learner: no answer"), KeyboardInterrupt()])
def test_a_learner_that_is_not_met_or_not_waited_for_is_ended(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []

    class Learner:
        def __init__(self, *arguments: Any) -> None:
            """Its ranks are asked for."""

        def build(self, timeout_s: float) -> list[Any]:
            raise error

        def close(self) -> None:
            closed.append("learner")

    monkeypatch.setattr(offline, "LearnerGroup", Learner)
    unused: Any = None
    given = config(DPO)
    run = Run(given, unused, unused, unused, unused, Path("models/none"))
    with pytest.raises(type(error)):
        offline.start_offline_workers(run, plan(given, 2, 0))
    assert closed == ["learner"]
