"""A disk that is full at the wrong moment: nothing that counts is lost, and the run is the same run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.harness import CHANGES, STEPS, Fault, assert_same_run, assert_same_weights, report, run_with
from tests.integration.runs import recipe, train


def test_a_checkpoint_that_finds_no_room_is_told_and_the_run_goes_on(
    undisturbed: Path, tiny_model: Path, tmp_path: Path
) -> None:
    fault = Fault(
        "disk full while a checkpoint is written", "learner-0", "learners.engines.saving:save_file", do="nospace"
    )
    ended = run_with([fault], recipe(tmp_path, tiny_model, **CHANGES), tmp_path / "run")
    assert ended.code == 0, ended.output
    assert "the checkpoint of step 2 could not be written" in ended.after(fault.id, "damaged")[0]["text"]
    assert [event["step"] for event in ended.after(fault.id, "checkpoint")] == [4, 6]
    assert_same_weights(ended.run_dir, undisturbed, STEPS)
    report(ended, fault.id, detected="damaged", recovered="checkpoint")


@pytest.mark.parametrize(
    ("what", "at", "do"),
    [
        ("samples", "cluster.training.online:write_samples", "nospace"),
        ("the ledger", "cluster.run.ledger:Ledger.trained", "full"),
    ],
)
def test_other_records_that_find_no_room_end_the_run_with_the_way_on(
    undisturbed: Path, tiny_model: Path, tmp_path: Path, what: str, at: str, do: str
) -> None:
    fault = Fault(f"disk full while {what} are written", "driver", at, call=4, do=do)
    ended = run_with([fault], path := recipe(tmp_path, tiny_model, **CHANGES), tmp_path / "run")
    assert ended.code == 1
    assert "could not be written" in ended.output and "make room and resume with: raylign train" in ended.output
    train(path, tmp_path / "run", "--resume")
    assert_same_run(ended.run_dir, undisturbed)
