"""The run directory refuses what would spoil a run, writes whole files or none, and is cut back to a commit."""

from __future__ import annotations

import json
import multiprocessing
import os

import fsspec
import pytest
import yaml

from cluster.config.schema import Config
from cluster.errors import UserError
from cluster.run.directory import RunDirectory, atomic_path, read_json_lines, write_atomic
from tests.fixtures.fake_run import fake_config, make_fake_run


def test_create_refuses_a_directory_that_holds_a_run_and_names_both_ways_out(tmp_path):
    run = RunDirectory.create(tmp_path / "run")
    RunDirectory.create(tmp_path / "run")  # still empty: fine
    run.write_config(fake_config())
    with pytest.raises(UserError, match=r"already holds a run \(config.yaml\); add --resume .* another --run-dir"):
        RunDirectory.create(tmp_path / "run")


def test_attach_refuses_a_directory_without_a_run(tmp_path):
    with pytest.raises(UserError, match=r"holds no run \(no config.yaml in it\)"):
        RunDirectory.attach(tmp_path)


def test_saved_config_reads_back_as_the_same_config(tmp_path):
    run = RunDirectory.create(tmp_path)
    config = fake_config("ppo", steps=7)
    run.write_config(config)
    assert Config.model_validate(RunDirectory.attach(tmp_path).read_config()) == config
    assert run.read_config()["learner"]["optimizer"]["lr"] == 1e-6  # a number again, although YAML 1.1 is shy of 1e-6


def test_second_driver_is_refused_in_one_sentence_that_names_the_first(tmp_path):
    first, second = RunDirectory(tmp_path), RunDirectory(tmp_path)
    with first.lock(clock=lambda: 0.0):
        with pytest.raises(UserError) as caught, second.lock():
            pass
        assert f"in use by process {os.getpid()} on " in str(caught.value)
        assert "stop that run or give another --run-dir" in str(caught.value)
        assert "\n" not in str(caught.value)
        assert json.loads(first.lock_file.read_text())["time"] == 0.0
    with second.lock():  # free again
        pass


def _hold_and_die(path: str) -> None:
    with RunDirectory(path).lock():
        os._exit(9)


def test_lock_of_a_killed_driver_is_free(tmp_path):
    process = multiprocessing.get_context("fork").Process(target=_hold_and_die, args=(str(tmp_path),))
    process.start()
    process.join(30)
    assert process.exitcode == 9
    assert json.loads((tmp_path / "lock").read_text())["pid"] == process.pid  # it did hold it
    with RunDirectory(tmp_path).lock():
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()


def test_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path):
    file = tmp_path / "file"
    write_atomic(file, "old")
    with pytest.raises(RuntimeError, match="disk"), atomic_path(file) as temporary:
        temporary.write_text("ne")
        raise RuntimeError("disk full")
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]
    write_atomic(file, b"new")
    assert file.read_text() == "new"


def test_truncate_keeps_exactly_what_the_commit_covers(tmp_path):
    run = make_fake_run(tmp_path, steps=10, sample_steps=5)  # samples at 2, 4, 6, 8, 10
    run.report_file.write_text("stale")
    with run.events_file.open("a") as file:
        file.write(json.dumps({"time": 1.0, "step": None, "kind": "note", "text": "of no step"}) + "\n")
    before = run.metrics_file.read_text().splitlines()
    run.truncate_after(6)
    assert run.metrics_file.read_text().splitlines() == before[:7]  # steps 0 to 6, byte for byte
    assert run.sample_steps() == [2, 4, 6]
    events = read_json_lines(run.events_file)
    assert max(event["step"] for event in events if event["step"] is not None) == 6
    assert events[-1]["text"] == "of no step"
    assert not run.report_file.exists()
    run.truncate_after(6)
    assert run.metrics_file.read_text().splitlines() == before[:7]


def test_truncate_drops_a_line_that_a_crash_tore(tmp_path):
    run = RunDirectory.create(tmp_path)
    run.metrics_file.write_text('{"step": 1}\n{"step": 2}\n{"ste')
    run.truncate_after(5)
    assert run.metrics_file.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_malformed_line_in_the_middle_is_named_by_file_and_number(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1}\nnot json\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"metrics.jsonl:2 is not a JSON object"):
        read_json_lines(file)


def test_a_run_that_goes_on_is_pushed_without_its_ledger_and_what_is_half_written(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYLIGN_HOME", str(tmp_path))
    run = make_fake_run("memory://bucket/run-3", steps=2, sample_steps=0)
    run.ledger_file.write_text("of the end before")
    run.push()
    assert fsspec.filesystem("memory").exists("bucket/run-3/ledger.sqlite")
    half = run.checkpoints / ".step-3.tmp"
    half.mkdir()
    (half / "state").write_text("half")
    whole = run.checkpoint(2)
    whole.mkdir()
    (whole / "ledger.sqlite").write_text("a backup")
    run.push(running=True)
    there = fsspec.filesystem("memory")
    names = {name.removeprefix("/bucket/run-3/") for name in there.find("bucket/run-3")}
    assert "checkpoints/step-2/ledger.sqlite" in names and "metrics.jsonl" in names
    assert "ledger.sqlite" not in names, "an older one would be taken for the present"
    assert not [name for name in names if "/." in name]


def test_url_run_is_pushed_pulled_and_loses_what_the_working_copy_lost(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYLIGN_HOME", str(tmp_path / "here"))
    url = "memory://bucket/run-1"
    run = make_fake_run(url, steps=4, sample_steps=2)  # samples at 2 and 4
    run.push()
    there = fsspec.filesystem("memory")
    assert there.exists("/bucket/run-1/samples/step-000004.parquet")
    run.truncate_after(2)
    run.push()
    assert not there.exists("/bucket/run-1/samples/step-000004.parquet")
    monkeypatch.setenv("RAYLIGN_HOME", str(tmp_path / "elsewhere"))
    other = RunDirectory.attach(url)
    assert other.root != run.root
    assert other.metrics_file.read_text() == run.metrics_file.read_text()
    assert other.sample_steps() == [2]


def test_pull_leaves_a_working_copy_alone_that_a_driver_holds(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYLIGN_HOME", str(tmp_path))
    run = make_fake_run("memory://bucket/run-2", steps=2, sample_steps=0)
    run.push()
    with run.lock():
        run.events_file.write_text('{"time": 1, "step": 9, "kind": "note", "text": "not pushed yet"}\n')
        RunDirectory.attach("memory://bucket/run-2")
        assert "not pushed yet" in run.events_file.read_text()
    RunDirectory.attach("memory://bucket/run-2")
    assert "not pushed yet" not in run.events_file.read_text()


def test_pull_leaves_a_working_copy_alone_whose_last_push_failed(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYLIGN_HOME", str(tmp_path))
    run = make_fake_run("memory://bucket/run-4", steps=2, sample_steps=0)
    run.push()
    there = fsspec.filesystem("memory")

    def unreachable(*arguments):
        raise OSError("no route")

    with monkeypatch.context() as cut, pytest.raises(OSError, match="no route"), run.lock():
        run.push(running=True)
        run.events_file.write_text('{"time": 1, "kind": "note", "text": "not pushed yet"}\n')
        cut.setattr(type(there), "put_file", unreachable)
        run.push()
    again = RunDirectory.attach("memory://bucket/run-4")
    assert "not pushed yet" in run.events_file.read_text()
    with again.lock():
        again.push()
    RunDirectory.attach("memory://bucket/run-4")
    assert b"not pushed yet" in there.cat_file("bucket/run-4/events.jsonl")
    there.pipe_file("bucket/run-4/events.jsonl", b"")
    RunDirectory.attach("memory://bucket/run-4")
    assert run.events_file.read_text() == "", "what was sent whole follows the URL again"


def test_truncate_drops_the_exports_of_a_history_that_does_not_count(tmp_path):
    run = RunDirectory.create(tmp_path / "run")
    for step in (2, 4, 6):
        run.policy(step).mkdir()
        (run.policy(step) / "model.safetensors").touch()
    run.truncate_after(4)
    assert sorted(path.name for path in run.policies.iterdir()) == ["step-2", "step-4"]


def test_pull_leaves_a_working_copy_alone_whose_driver_was_killed(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYLIGN_HOME", str(tmp_path))
    run = RunDirectory.create("memory://killed/run")
    (run.root / "metrics.jsonl").write_text("never pushed\n")
    run.lock_file.write_text('{"pid": 1}\n')
    run.pull()
    assert (run.root / "metrics.jsonl").read_text() == "never pushed\n"
    run.lock_file.write_text("")
    run.pull()
    assert not (run.root / "metrics.jsonl").exists(), "one that ended pushed what counts"


def test_what_a_run_of_before_saved_of_keys_that_are_gone_is_passed_over(tmp_path):
    run = RunDirectory.create(tmp_path)
    zero, rated = {"stage": 1}, {"path": "models/rm", "weight": 1.0}
    now = {"learner": {"zero": zero}, "critic": {"zero": zero}, "steps": 7}
    now["reward"] = {"models": {"rm": rated}, "safety": {"models": {"harm": rated}}}
    cut, batched = {**zero, "nvme_path": None}, {**rated, "batch_size": 16}
    saved = {"learner": {"zero": cut}, "critic": {"zero": cut}, "steps": 7}
    saved["reward"] = {"models": {"rm": batched}, "safety": {"models": {"harm": batched}}}
    run.config_file.write_text(yaml.safe_dump(saved))
    assert run.read_config() == now
    run.config_file.write_text(yaml.safe_dump({**saved, "critic": None, "reward": {"models": {}, "safety": None}}))
    assert run.read_config() == {**now, "critic": None, "reward": {"models": {}, "safety": None}}
