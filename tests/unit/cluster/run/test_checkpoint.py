"""The commit: only a directory whose every byte is as its manifest says counts, and nothing else ever does."""

import json
import os
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.run.checkpoints import checkpoint
from cluster.run.checkpoints.checkpoint import commit, damage, latest_whole, open_stage, prune, steps
from cluster.run.checkpoints.policies import policy_steps, prune_policies
from cluster.run.checkpoints.state import DriverState
from cluster.run.directory import RunDirectory
from cluster.training.recovery import last_commit


def write(folder, step, text="weights"):
    stage = open_stage(folder, step)
    (stage / "policy").mkdir()
    (stage / "policy" / "rank-0.bin").write_text(text)
    (stage / "driver.json").write_text(json.dumps({"step": step}))
    (stage / "empty").touch()
    commit(folder, step, stage)
    return folder / f"step-{step}"


def test_a_commit_is_whole_and_leaves_no_staging_behind(tmp_path):
    made = write(tmp_path, 3)
    assert damage(made) is None and latest_whole(tmp_path) == (made, [])
    assert [p.name for p in tmp_path.iterdir()] == ["step-3"]
    files = json.loads((made / "manifest.json").read_text())["files"]
    assert list(files) == ["driver.json", "empty", "policy/rank-0.bin"]
    assert files["policy/rank-0.bin"]["bytes"] == 7


@pytest.mark.parametrize("name", ["driver.json", "policy/rank-0.bin", "manifest.json"])
def test_any_flipped_byte_is_found(tmp_path, name):
    made = write(tmp_path, 3)
    whole = (made / name).read_bytes()
    before = json.loads((made / "manifest.json").read_text())
    for i in range(len(whole)):
        for bit in (0, 1, 5):
            torn = bytearray(whole)
            torn[i] ^= 1 << bit
            (made / name).write_bytes(torn)
            if damage(made) is None:  # white space of the manifest: it says the same
                assert name == "manifest.json" and json.loads(torn) == before
    (made / name).write_bytes(whole)
    assert damage(made) is None


@pytest.mark.parametrize("name", ["driver.json", "policy/rank-0.bin", "manifest.json"])
def test_a_cut_or_grown_file_is_found(tmp_path, name):
    made = write(tmp_path, 3)
    whole = (made / name).read_bytes()
    for torn in (b"", whole[:-2], whole + b"x"):
        (made / name).write_bytes(torn)
        assert damage(made) is not None
        assert latest_whole(tmp_path)[0] is None


@pytest.mark.parametrize("name", ["driver.json", "empty", "policy/rank-0.bin"])
def test_a_removed_file_is_found_and_the_checkpoint_before_stands(tmp_path, name):
    before, last = write(tmp_path, 3), write(tmp_path, 10)
    (last / name).unlink()
    found, damaged = latest_whole(tmp_path)
    assert found == before and len(damaged) == 1 and name in damaged[0]


def test_a_directory_whose_manifest_is_gone_or_anothers_never_counts(tmp_path):
    older, newer = write(tmp_path, 3), write(tmp_path, 4)
    shutil.copytree(older, tmp_path / "step-7")
    assert "another checkpoint's" in damage(tmp_path / "step-7")
    (newer / "manifest.json").unlink()
    assert steps(tmp_path) == [3, 7] and latest_whole(tmp_path)[0] == older
    assert "no readable manifest" in damage(newer)


@pytest.mark.parametrize(
    "text", ["[]", "{}", "null", '{"step": 3, "files": {}}', '{"step": 3, "files": 5, "sha256": 1}']
)
def test_a_manifest_of_another_shape_is_damage_and_not_a_crash(tmp_path, text):
    made = write(tmp_path, 3)
    (made / "manifest.json").write_text(text)
    assert damage(made) is not None


@given(st.binary(max_size=60))
def test_no_bytes_at_all_pass_for_a_manifest(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("checkpoints") / "step-3"
    folder.mkdir()
    (folder / "manifest.json").write_bytes(content)
    assert damage(folder) is not None


@pytest.mark.parametrize("killed_in", ["write_atomic", "fsync", "os.replace"])
def test_a_kill_before_the_rename_never_counts_and_the_next_attempt_starts_clean(tmp_path, monkeypatch, killed_in):
    before = write(tmp_path, 3)

    def kill(*arguments):
        raise KeyboardInterrupt

    stage = tmp_path / ".step-4.tmp"
    stage.mkdir()
    (stage / "half").write_text("x")
    with monkeypatch.context() as killed:
        target = (os, "replace") if killed_in == "os.replace" else (checkpoint, killed_in)
        killed.setattr(*target, kill)
        with pytest.raises(KeyboardInterrupt):
            commit(tmp_path, 4, stage)
    assert steps(tmp_path) == [3] and latest_whole(tmp_path) == (before, [])
    assert stage.exists()  # as after a kill: nobody cleaned up
    assert not (write(tmp_path, 4) / "half").exists() and not stage.exists()
    assert steps(tmp_path) == [3, 4]


def test_what_killed_drivers_half_wrote_and_half_removed_is_gone_when_their_run_goes_back(tmp_path):
    run = RunDirectory.create(tmp_path)
    made = write(run.checkpoints, 3)
    for folder in (run.checkpoints, run.policies):
        for name in (".step-4.tmp", ".step-2.old.tmp"):
            (folder / name).mkdir()
            (folder / name / "half").touch()
    (run.policies / "step-3").mkdir()
    assert last_commit(run) == (made, [])
    assert os.listdir(run.checkpoints) == os.listdir(run.policies) == ["step-3"]


def test_exports_that_no_kept_checkpoint_knows_as_its_best_go_with_a_commit(tmp_path):
    run = RunDirectory.create(tmp_path)
    for step, best in ((4, 2), (8, 6)):
        stage = open_stage(run.checkpoints, step)
        DriverState(step=step, best_step=best).save(stage)
        commit(run.checkpoints, step, stage)
    for step in (2, 3, 5, 6, 7, 8, 9):
        run.policy(step).mkdir()
        (run.policy(step) / "config.json").touch()
    state = run.checkpoint(4) / "driver.json"
    whole = state.read_text()
    for torn in (whole[:20], '{"step": 4, "other": 1}'):
        state.write_text(torn)
        prune_policies(run)
        assert len(policy_steps(run)) == 7, "it does not say which was its best"
    state.write_text(whole)
    prune_policies(run)
    assert policy_steps(run) == [2, 6, 8, 9], "a resume may go back to step 4; 9 is of no commit yet"
    assert len(os.listdir(run.policies)) == 4


def test_a_folder_that_is_not_there_holds_no_checkpoints(tmp_path):
    assert steps(tmp_path / "not there") == []


def test_a_step_committed_again_replaces_the_earlier_one(tmp_path):
    write(tmp_path, 3, "old history")
    made = write(tmp_path, 3, "new")
    assert (made / "policy" / "rank-0.bin").read_text() == "new" and damage(made) is None


def test_pruning_keeps_the_last_and_the_best_by_number_not_by_name(tmp_path):
    for step in (2, 9, 10, 11):
        write(tmp_path, step)
    prune(tmp_path, keep_last=2, keep={2})
    assert steps(tmp_path) == [2, 10, 11] and not (tmp_path / "step-9").exists()
    prune(tmp_path, keep_last=5, keep=set())
    assert steps(tmp_path) == [2, 10, 11]
    prune(tmp_path, keep_last=1, keep=set())
    assert steps(tmp_path) == [11] and damage(tmp_path / "step-11") is None


def test_one_whose_removal_was_killed_claims_nothing_and_goes_with_what_is_half_written(tmp_path, monkeypatch):
    for step in (1, 2):
        write(tmp_path, step)
    with monkeypatch.context() as killed:

        def kill(path, ignore_errors=False):
            if path.exists():
                (path / "driver.json").unlink()
                raise KeyboardInterrupt

        killed.setattr(checkpoint.shutil, "rmtree", kill)
        with pytest.raises(KeyboardInterrupt):
            prune(tmp_path, keep_last=1, keep=set())
    assert steps(tmp_path) == [2]
    checkpoint.clear_stages(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-2"]


def test_the_drivers_state_comes_back_no_scores_included(tmp_path):
    state = DriverState(step=4, position=32, kl_coef=0.05, source="abc", best_step=2, best_value=0.5)
    state.baseline["accuracy"] = [0.0, 1.0]
    state.save(tmp_path)
    assert DriverState.load(tmp_path) == state
    state.scores["accuracy"] = [float("nan"), 1.0]
    state.save(tmp_path)
    assert [x != x for x in DriverState.load(tmp_path).scores["accuracy"]] == [True, False]


def test_damaged_checkpoints_are_set_aside_so_that_pruning_does_not_keep_them_for_whole_ones(tmp_path):
    whole = write(tmp_path, 2)
    for step in (3, 4):
        (write(tmp_path, step) / "driver.json").write_text("torn")
    assert latest_whole(tmp_path)[0] == whole
    checkpoint.set_aside_after(tmp_path, whole)
    assert steps(tmp_path) == [2] and (tmp_path / "damaged-4" / "driver.json").exists()
    write(tmp_path, 3)
    prune(tmp_path, 2, set())
    assert steps(tmp_path) == [2, 3]


def test_a_directory_that_is_no_checkpoint_sets_nothing_aside(tmp_path):
    write(tmp_path, 3)
    with pytest.raises(ValueError, match=r"policy is no checkpoint: those are named step-N"):
        checkpoint.set_aside_after(tmp_path, tmp_path / "policy")
    assert steps(tmp_path) == [3]
