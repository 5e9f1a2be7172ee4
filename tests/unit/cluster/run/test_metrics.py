"""metrics.jsonl stays valid and whole whatever happens; trackers follow it and never stop a run."""

from __future__ import annotations

import json
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from cluster.errors import UserError
from cluster.run.directory import RunDirectory
from cluster.run.records.metrics import EventsWriter, Interval, MetricsWriter, eval_metrics, read_events, read_metrics
from cluster.run.records.trackers import MlflowTracker, TensorBoardTracker, WandbTracker, open_trackers
from tests.fixtures.fake_run import fake_config


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    return RunDirectory.create(tmp_path)


class Recorder:
    """A tracker that remembers, and fails when told to."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.rows: list[tuple[int, dict]] = []
        self.fail_at = fail_at
        self.closed: bool | None = None

    def log(self, step, metrics, time_s):
        if step == self.fail_at:
            raise ConnectionError("server gone")
        self.rows.append((step, dict(metrics)))

    def close(self, *, failed):
        self.closed = failed


def test_a_step_is_one_line_of_json_that_is_on_disk_at_once(run):
    writer = MetricsWriter(run, clock=lambda: 12.3456)
    writer.write(1, {"reward/mean": 0.5, "staleness/max": 2, "kl/ref": np.float32(0.25)})
    assert run.metrics_file.read_text() == (
        '{"step": 1, "time": 12.346, "reward/mean": 0.5, "staleness/max": 2, "kl/ref": 0.25}\n'
    )


def test_number_that_is_not_finite_is_null_and_hidden_from_trackers(run):
    recorder = Recorder()
    writer = MetricsWriter(run, {"fake": recorder})
    writer.write(1, {"loss": math.nan, "grad": -math.inf, "kl/ref": 0.0})
    (row,) = read_metrics(run.metrics_file)
    assert (row["loss"], row["grad"], row["kl/ref"]) == (None, None, 0.0)
    assert recorder.rows == [(1, {"kl/ref": 0.0})]


def test_value_that_is_no_number_is_refused_by_name_and_not_written(run):
    writer = MetricsWriter(run)
    with pytest.raises(ValueError, match=r"metric reward/mean must be a number, got 'high'"):
        writer.write(1, {"reward/mean": "high"})
    assert run.metrics_file.read_text() == ""


def test_step_is_written_once_and_in_order_also_after_reopening(run):
    MetricsWriter(run).write(3, {})
    with pytest.raises(ValueError, match=r"metrics of step 3 come after step 3; .* RunDirectory.truncate_after first"):
        MetricsWriter(run).write(3, {})
    run.truncate_after(2)
    MetricsWriter(run).write(3, {"again": 1.0})
    assert [row["again"] for row in read_metrics(run.metrics_file)] == [1.0]


def test_line_torn_by_a_crash_does_not_spoil_the_next(run):
    run.metrics_file.write_text('{"step": 1, "time": 1.0}\n{"step": 2, "ti')
    MetricsWriter(run, clock=lambda: 5.0).write(2, {})
    assert [json.loads(line) for line in run.metrics_file.read_text().splitlines()] == [
        {"step": 1, "time": 1.0},
        {"step": 2, "time": 5.0},
    ]


def test_tracker_that_fails_is_reported_once_and_the_run_goes_on(run):
    broken, healthy, heard = Recorder(fail_at=2), Recorder(), []
    writer = MetricsWriter(
        run, {"broken": broken, "healthy": healthy}, lambda name, error: heard.append((name, str(error)))
    )
    for step in (1, 2, 3):
        writer.write(step, {"loss": 1.0})
    writer.close(failed=True)
    assert heard == [("broken", "server gone")]
    assert [step for step, _ in healthy.rows] == [1, 2, 3]
    assert [row["step"] for row in read_metrics(run.metrics_file)] == [1, 2, 3]
    assert (broken.closed, healthy.closed) == (None, True)


def test_tensorboard_shows_only_the_history_that_counts_after_a_resume(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first = TensorBoardTracker(run, None)
    for step in (1, 2, 3, 4):
        first.log(step, {"reward/mean": float(step)}, 100.0 + step)
    first.close(failed=False)
    second = TensorBoardTracker(run, 2)
    second.log(3, {"reward/mean": 33.0}, 200.0)
    second.close(failed=False)
    # Two writers within a second get names that sort by chance; TensorBoard orders real runs by start time.
    ordered = sorted(run.tensorboard.iterdir(), key=lambda file: file.stat().st_mtime_ns)
    for index, file in enumerate(ordered):
        file.rename(run.tensorboard / f"events.out.tfevents.{index:010d}.host")
    seen = EventAccumulator(str(run.tensorboard))
    seen.Reload()
    assert [(event.step, event.value) for event in seen.Scalars("reward/mean")] == [(1, 1.0), (2, 2.0), (3, 33.0)]


def test_tensorboard_alone_unless_others_are_configured(run):
    trackers = open_trackers(run, fake_config())
    assert list(trackers) == ["tensorboard"]
    trackers["tensorboard"].close(failed=False)


@pytest.mark.parametrize(
    ("module", "tracker", "fix"), [("wandb", WandbTracker, "wandb"), ("mlflow", MlflowTracker, "mlflow-skinny")]
)
def test_missing_tracking_package_is_a_sentence_with_the_fix(run, monkeypatch, module, tracker, fix):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        UserError, match=f"tracking.{module} is set but {module} is not installed; run `pip install {fix}`"
    ):
        tracker(run, fake_config(), {})


def test_wandb_goes_on_in_the_same_run_and_draws_against_our_step(run, monkeypatch):
    calls = []

    class Run:
        id = "abc123"

        def define_metric(self, name, step_metric=None):
            calls.append((name, step_metric))

        def log(self, row):
            calls.append(row)

        def finish(self, exit_code):
            calls.append(exit_code)

    def init(**settings):
        calls.append({key: settings.get(key) for key in ("project", "name", "id", "resume")})
        return Run()

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    for _ in range(2):
        tracker = WandbTracker(run, fake_config(name="mine"), {"project": "p"})
    tracker.log(7, {"loss": 0.5}, 1.0)
    tracker.close(failed=True)
    base = {"project": "p", "name": "mine", "resume": "allow"}
    defined = [("step", None), ("*", "step")]
    assert calls == [{**base, "id": None}, *defined, {**base, "id": "abc123"}, *defined, {"loss": 0.5, "step": 7}, 1]


def test_events_keep_time_step_kind_text_and_what_else_is_known(run):
    writer = EventsWriter(run, clock=lambda: 9.0)
    writer.write("worker_died", "rollout worker 1 died", 4, worker=1)
    writer.write("note", "no step")
    with pytest.raises(ValueError, match="cannot use the name 'time'"):
        writer.write("note", "clash", time=1.0)
    assert read_events(run.events_file) == [
        {"time": 9.0, "step": 4, "kind": "worker_died", "text": "rollout worker 1 died", "worker": 1},
        {"time": 9.0, "step": None, "kind": "note", "text": "no step"},
    ]


def test_evaluation_is_three_names_in_a_row():
    assert eval_metrics("reward", Interval(0.4, 0.3, 0.5)) == {
        "eval/reward": 0.4,
        "eval/reward_low": 0.3,
        "eval/reward_high": 0.5,
    }


def test_reading_metrics_that_do_not_exist_yet_gives_none(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []
