"""Checkpoints that are written beside training: whole or absent, one at a time, and what a failed write does."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from cluster.errors import LearnerLost, RunFailed
from cluster.run.checkpoints import checkpoint
from cluster.run.checkpoints.commits import Commits
from cluster.run.directory import RunDirectory
from cluster.run.records.metrics import EventsWriter, read_events

KEEP = (2, set())


class Bench:
    """Commits over a folder, with a writer that the test lets go on."""

    def __init__(self, tmp_path: Path) -> None:
        self.run = RunDirectory.create(tmp_path / "run")
        self.events = EventsWriter(self.run)
        self.told: list[str] = []
        self.commits = Commits(self.run.checkpoints, self.events, self.told.append, timeout_s=20.0)
        self.written = threading.Event()
        self.failure: Exception | None = None

    def begin(self, step: int, text: str = "state") -> None:
        def saved():
            if self.failure is not None:
                raise self.failure
            return {} if self.written.is_set() else None

        self.commits.begin(step, lambda stage: (stage / "state").write_text(text) and None, saved, KEEP)

    def kinds(self) -> list[tuple[str, int | None]]:
        return [(event["kind"], event["step"]) for event in read_events(self.run.events_file)]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_training_goes_on_while_it_is_written_and_it_counts_when_it_is_whole(bench: Bench) -> None:
    bench.begin(2)
    assert checkpoint.latest_whole(bench.run.checkpoints) == (None, [])
    bench.written.set()
    bench.commits.wait(last=False)
    assert checkpoint.latest_whole(bench.run.checkpoints)[0] == bench.run.checkpoint(2)
    assert bench.kinds() == [("checkpoint", 2)]
    assert list(bench.run.checkpoints.glob(".*")) == []


def test_each_commit_is_sent_to_where_the_run_is_kept_and_one_that_cannot_be_is_told(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    seen: list[list[int]] = []

    def send() -> None:
        seen.append(checkpoint.steps(bench.run.checkpoints))
        if len(seen) == 1:
            raise OSError("no route to the bucket")

    bench.commits = Commits(bench.run.checkpoints, bench.events, bench.told.append, timeout_s=20.0, committed=send)
    bench.written.set()
    for step in (2, 4):
        bench.begin(step)
        bench.commits.wait(last=step == 4)
    assert seen == [[2], [2, 4]]
    assert bench.told == [
        "the checkpoint of step 2 could not be copied to where the run is kept (no route to the bucket); the run goes "
        "on, and sends it with the next"
    ]
    events = map(json.loads, bench.run.events_file.read_text().splitlines())
    assert [(event["kind"], event["step"]) for event in events] == [
        ("checkpoint", 2),
        ("damaged", None),
        ("checkpoint", 4),
    ]


def test_the_next_waits_for_the_one_before(bench: Bench) -> None:
    bench.begin(2)
    threading.Timer(0.3, bench.written.set).start()
    bench.begin(4)
    assert checkpoint.steps(bench.run.checkpoints)[:1] == [2]
    bench.commits.wait(last=True)
    assert checkpoint.steps(bench.run.checkpoints) == [2, 4]


def test_one_whose_writer_is_gone_is_dropped_without_a_trace(bench: Bench) -> None:
    bench.begin(2)
    bench.commits.drop()
    assert list(bench.run.checkpoints.iterdir()) == [] and bench.kinds() == []
    bench.failure = LearnerLost("writing a checkpoint: the worker died")
    bench.begin(4)
    with pytest.raises(LearnerLost):
        bench.commits.wait(last=False)


def test_one_that_cannot_be_written_is_told_and_the_second_in_a_row_ends_the_run(bench: Bench) -> None:
    bench.written.set()
    bench.begin(2)
    bench.failure = RunFailed("writing a checkpoint: OSError: no space")
    bench.begin(4)
    bench.commits.wait(last=False)
    assert bench.told == [
        "the checkpoint of step 4 could not be written (writing a checkpoint: OSError: no space); the run goes on, the "
        "commit before it stands"
    ]
    bench.failure = None
    bench.begin(6)
    bench.failure = RunFailed("no space")
    bench.begin(8)
    bench.commits.wait(last=False)
    bench.begin(10)
    with pytest.raises(RunFailed, match=r"step 10 could not be written .* make room and resume"):
        bench.commits.wait(last=False)
    assert checkpoint.steps(bench.run.checkpoints) == [2, 6]


def test_the_last_one_has_to_be_written(bench: Bench) -> None:
    bench.failure = RunFailed("no space")
    bench.begin(2)
    with pytest.raises(RunFailed, match="step 2 could not be written"):
        bench.commits.wait(last=True)


def test_a_stage_that_cannot_be_filled_is_a_write_that_failed(bench: Bench) -> None:
    def full(stage: Path) -> None:
        raise OSError(28, "No space left on device")

    bench.commits.begin(2, full, lambda: {}, KEEP)
    assert "No space left on device" in bench.told[0]
    assert list(bench.run.checkpoints.iterdir()) == []


def test_files_that_their_writer_synced_are_not_read_again(bench: Bench, tmp_path: Path) -> None:
    facts = {"bytes": 3, "sha256": "as the writer found it"}
    bench.commits.begin(2, lambda stage: (stage / "a").write_text("abc") and None, lambda: {"a": facts}, KEEP)
    bench.commits.wait(last=True)
    manifest = json.loads((bench.run.checkpoint(2) / "manifest.json").read_text())
    assert manifest["files"] == {"a": facts}
    assert "does not have the hash" in checkpoint.damage(bench.run.checkpoint(2))
