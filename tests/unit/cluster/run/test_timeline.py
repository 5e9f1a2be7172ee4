"""The timeline: neighbours are one span, a step is a line, and a trace viewer gets what it reads."""

import json

import pytest

from actors.rollouts.spans import SpanLog
from cluster.commands.trace import trace
from cluster.errors import UserError
from cluster.run.directory import RunDirectory
from cluster.run.records.timeline import Timeline, chrome_trace, read_timeline
from cluster.run.report.timeline import strips
from tests.fixtures.fake_run import make_fake_run


def test_neighbours_of_one_kind_are_one_span_and_are_taken_once():
    log = SpanLog(lambda: 0.0)
    to_unix = log._to_unix
    for kind, begin, end in (("a", 0, 1), ("a", 1.01, 2), ("b", 2, 3), ("a", 3, 4), ("a", 5, 6)):
        log.add(kind, begin, end)
    spans = [(kind, round(begin - to_unix, 3), round(end - to_unix, 3)) for kind, begin, end in log.take()]
    assert spans == [("a", 0.0, 2.0), ("b", 2.0, 3.0), ("a", 3.0, 4.0), ("a", 5.0, 6.0)]
    assert log.take() == ()


def test_a_step_is_a_line_and_a_resume_cuts_it_back(tmp_path):
    run = RunDirectory.create(tmp_path / "run")
    timeline = Timeline(run)
    timeline.add({"rollout-0": [("generate", 10.0, 11.5)]})
    with timeline.span("update"):
        pass
    timeline.write(1)
    timeline.add({"rollout-0": [("sync", 12.0, 12.5)]})
    timeline.write(2)
    found = read_timeline(run)
    assert found["rollout-0"] == [("generate", 10.0, 11.5), ("sync", 12.0, 12.5)]
    assert [what for what, _, _ in found["driver"]] == ["update"]
    run.truncate_after(1)
    assert read_timeline(run)["rollout-0"] == [("generate", 10.0, 11.5)]


def test_a_strip_shows_in_each_column_what_took_the_most_of_it():
    """600 s in 600 columns of a second; a column that little is told of stays empty."""
    spans = {
        "rollout-0": [("generate", 1000.0, 1010.0), ("sync", 1010.0, 1010.4), ("generate", 1010.4, 1020.0)],
        "driver": [("rollout", 1000.0, 1600.0)],
        "rollout-1": [("generate", 1100.0, 1100.2)],
    }
    events = [
        {"time": 1100.0, "kind": "worker", "text": "rollout-1 joined"},
        {"time": 1101.0, "kind": "checkpoint", "text": "committed"},
        {"time": 900.0, "kind": "worker", "text": "rollout-0 joined"},
    ]
    found = strips(spans, events)
    assert (found["seconds"], found["columns"]) == (600.0, 600)
    assert [track["name"] for track in found["tracks"]] == ["driver", "rollout-0", "rollout-1"]
    assert found["tracks"][0]["runs"] == [["rollout", 0, 600]]
    assert found["tracks"][1]["runs"] == [["generate", 0, 20]], "0.4 s of taking weights is less than half a column"
    assert found["tracks"][2]["runs"] == []
    assert found["marks"] == [[100.0, "rollout-1 joined"]]
    assert strips({}, events) is None


def test_a_trace_has_a_thread_each_and_microseconds_from_the_first_span():
    spans = {"rollout-10": [("generate", 100.5, 101.0)], "rollout-2": [], "driver": [("rollout", 100.0, 102.0)]}
    found = chrome_trace(spans, [{"time": 101.0, "kind": "scale", "text": "more"}])["traceEvents"]
    names = [row["args"]["name"] for row in found if row["ph"] == "M"]
    assert names == ["driver", "rollout-2", "rollout-10"]
    assert [(r["name"], r["tid"], r["ts"], r["dur"]) for r in found if r["ph"] == "X"] == [
        ("rollout", 0, 0, 2_000_000),
        ("generate", 2, 500_000, 500_000),
    ]
    assert [(r["name"], r["ts"]) for r in found if r["ph"] == "i"] == [("more", 1_000_000)]


def test_the_command_writes_it_beside_the_run_and_says_what_it_lacks(tmp_path, capsys):
    run = make_fake_run(tmp_path / "run")
    with pytest.raises(UserError, match="has no timeline yet; let it finish a step"):
        trace(str(run))
    timeline = Timeline(run)
    timeline.add({"rollout-0": [("generate", 10.0, 11.5)]})
    timeline.write(1)
    trace(str(run))
    assert f"trace: {run.root}/trace.json" in capsys.readouterr().out
    assert json.loads((run.root / "trace.json").read_text())["traceEvents"]
