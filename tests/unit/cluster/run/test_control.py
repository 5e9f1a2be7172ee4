"""Asking a running driver: answers, refusals, nobody there, and a driver that does not answer."""

from __future__ import annotations

import json
import threading
import time

import pytest

from cluster.commands.scale import scale
from cluster.commands.status import run_lines
from cluster.errors import RunFailed, UserError
from cluster.run.control import ControlServer, ask
from cluster.service.control import scale_run
from tests.fixtures.fake_run import make_fake_run


@pytest.fixture
def run(tmp_path):
    return make_fake_run(tmp_path / "run")


def scaled(rollout: int) -> str:
    if rollout > 9:
        raise UserError("9 workers are the most here")
    if rollout > 8:
        raise RunFailed("the pool gave no answer")
    return f"{rollout} on the way"


def test_a_running_driver_answers_in_a_sentence_and_leaves_no_file(run, capsys):
    with run.lock(), ControlServer(run, {"scale": scaled}):
        assert scale_run(str(run), 3) == "3 on the way"
        scale(str(run), 4)
        assert capsys.readouterr().out == "4 on the way\n"
        assert list((run.root / "control").iterdir()) == []


def test_a_refusal_is_the_callers_error_and_the_driver_goes_on(run):
    with run.lock(), ControlServer(run, {"scale": scaled}):
        with pytest.raises(UserError, match="9 workers are the most here"):
            scale_run(str(run), 10)
        with pytest.raises(UserError, match="the pool gave no answer"):
            scale_run(str(run), 9)
        assert scale_run(str(run), 2) == "2 on the way"


def test_a_verb_that_the_run_does_not_have_is_named(run):
    with run.lock(), ControlServer(run, {}), pytest.raises(UserError, match="scale: this run has nothing of this name"):
        scale_run(str(run), 2)


def test_without_a_driver_nothing_is_left_behind(run, tmp_path):
    with pytest.raises(UserError, match=r"no driver works in .*run; start it, or name"):
        scale_run(str(run), 2)
    assert not (run.root / "control").exists()
    with pytest.raises(UserError, match="holds no run"):
        scale_run(str(tmp_path), 2)


def test_a_driver_that_does_not_answer_is_given_up_and_the_request_taken_back(run):
    with run.lock():
        with pytest.raises(UserError, match=r"gave no answer within 0\.05 s"):
            ask(run, "scale", rollout=2, timeout_s=0.05)
        assert list((run.root / "control").iterdir()) == []


def test_a_driver_that_ends_answers_who_asked_last_and_one_that_dies_is_not_waited_for(run, monkeypatch):
    monkeypatch.setattr("cluster.run.control.LOOK_EVERY_S", 0.5)
    heard: list[str] = []

    def late() -> None:
        with pytest.raises(UserError) as refusal:
            ask(run, "scale", rollout=2)
        heard.append(str(refusal.value))

    with run.lock(), ControlServer(run, {"scale": scaled}):
        asking = threading.Thread(target=late)
        asking.start()
        while not list((run.root / "control").glob("*.request.json")):  # not its temporary name
            time.sleep(0.005)
    asking.join(5)
    with run.lock():
        asking = threading.Thread(target=late)
        asking.start()
        while not list((run.root / "control").glob("*.request.json")):
            time.sleep(0.005)
    asking.join(5)
    assert heard[0] == "scale: this run has come to its end"
    assert heard[1].endswith("ended before it answered; see its log")
    assert list((run.root / "control").iterdir()) == []


def test_status_shows_who_works_for_a_run_that_goes_on(run):
    def second_line() -> str:
        return run_lines(str(run))[1]

    with run.lock(), ControlServer(run, {"workers": lambda: "rollout-0 healthy at version 3, rollout-1 joining"}):
        assert second_line() == "  workers: rollout-0 healthy at version 3, rollout-1 joining"
    assert "workers:" not in second_line(), "it has ended"
    with run.lock(), ControlServer(run, {}):
        assert "workers:" not in second_line(), "a run on stored rows has none"


def test_status_does_not_wait_long_for_a_driver_that_does_not_answer(run, monkeypatch):
    monkeypatch.setattr("cluster.commands.status.DRIVER_S", 0.1)
    with run.lock():
        assert run_lines(str(run))[1] == "  workers: not known while the driver is starting, ending or busy"


def test_a_verb_that_breaks_is_told_and_the_next_is_answered(run):
    def broken() -> str:
        raise KeyError("state")

    with run.lock(), ControlServer(run, {"broken": broken, "scale": scaled}):
        with pytest.raises(UserError, match=r"broken failed: KeyError\('state'\)"):
            ask(run, "broken")
        assert ask(run, "scale", rollout=2) == "2 on the way"


def test_requests_of_a_driver_that_died_are_forgotten(run):
    (run.root / "control").mkdir()
    (run.root / "control" / "x.request.json").write_text(json.dumps({"verb": "scale", "arguments": {"rollout": 7}}))
    asked: list[int] = []
    with run.lock(), ControlServer(run, {"scale": lambda rollout: asked.append(rollout) or "done"}):
        assert scale_run(str(run), 1) == "done"
    assert asked == [1]
