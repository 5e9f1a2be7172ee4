"""Models that are never trained: a run that goes on is told, before a step, when another lies in one's place."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from cluster import driver
from cluster.config import Config
from cluster.errors import RunFailed, UserError
from cluster.run.directory import RunDirectory
from cluster.training import recovery
from cluster.training.parts import frozen
from cluster.training.parts.frozen import changed, frozen_models, recognise
from cluster.training.parts.scoring import Scoring
from tests.fixtures.configs import DPO, GRPO, PPO, config

KL = "algorithm.kl={place: loss, coef: 0.1}"
LORA = "model.lora={rank: 2}"
ONLINE_DPO = "algorithm={name: online_dpo}"


def model_in(folder: Path, weights: bytes = b"weights") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)
    return folder


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    return model_in(tmp_path / "policy", b"policy")


@pytest.fixture
def scorer(tmp_path: Path) -> Path:
    return model_in(tmp_path / "scorer", b"scorer")


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "run")


def held(text: str, *overrides: str, policy: Path) -> set[str]:
    return set(frozen_models(config(text, *overrides), policy))


def test_a_reference_and_the_base_under_an_adapter_are_held_and_what_is_trained_is_not(policy: Path) -> None:
    assert held(GRPO, KL, policy=policy) == held(PPO, policy=policy) == {"the reference"}
    assert held(GRPO, ONLINE_DPO, policy=policy) == held(DPO, policy=policy) == {"the reference"}
    assert held(DPO, "algorithm={name: kto}", policy=policy) == {"the reference"}
    # No KL, no reference: the checkpoint's weights are all there is.
    assert held(GRPO, policy=policy) == held(DPO, "algorithm={name: orpo}", policy=policy) == set()
    assert held(DPO, "algorithm={name: sft}", policy=policy) == set()
    for text in (GRPO, DPO):
        assert held(text, LORA, policy=policy) == {"the base model"}, "which is the reference too"
    assert held(GRPO, LORA, KL, policy=policy) == held(DPO, "algorithm={name: sft}", LORA, policy=policy)


def kinds(policy: Path, scorer: Path) -> dict[str, tuple[Config, Path]]:
    """A run of each kind of model that is held, and where that one lies."""
    reward = f"reward.models={{quality: {{path: {scorer}}}}}"
    cost = f"reward.safety={{models: {{harm: {{path: {scorer}}}}}}}"
    judge = f"reward={{judges: {{better: {{path: {scorer}}}}}}}"
    return {
        "the reference": (config(GRPO, KL), policy),
        "the base model": (config(GRPO, LORA), policy),
        "the reward model quality": (config(GRPO, reward), scorer),
        "the reward model harm": (config(GRPO, cost), scorer),
        "the judge better": (config(GRPO, judge), scorer),
    }


KINDS = ("the reference", "the base model", "the reward model quality", "the reward model harm", "the judge better")


@pytest.mark.parametrize("kind", KINDS)
def test_a_resume_with_another_in_its_place_is_refused_with_its_name_file_and_fix(
    kind: str, policy: Path, scorer: Path, run: RunDirectory
) -> None:
    given, path = kinds(policy, scorer)[kind]
    recognise(given, policy, run, begun=False)
    recognise(given, policy, run, begun=True)
    assert changed(run) is None
    date = (path / "model.safetensors").stat().st_mtime_ns
    (path / "model.safetensors").write_bytes(b"other!")  # as long, and as old
    os.utime(path / "model.safetensors", ns=(date, date))
    with pytest.raises(UserError) as caught:
        recognise(given, policy, run, begun=True)
    assert str(caught.value) == (
        f"{kind} in {path} is not the one that this run began with: model.safetensors has changed; put back what was "
        "there, or start a new run directory"
    )
    assert changed(run) == str(caught.value)
    model_in(path, b"policy" if path == policy else b"scorer")
    recognise(given, policy, run, begun=True)


def test_all_that_changed_is_told_together(policy: Path, scorer: Path, run: RunDirectory) -> None:
    given = config(GRPO, KL, f"reward.models={{quality: {{path: {scorer}}}}}")
    recognise(given, policy, run, begun=False)
    (policy / "config.json").write_text('{"hidden_size": 9}')
    (policy / "pytorch_model.bin").write_bytes(b"")
    shutil.rmtree(scorer)
    told = changed(run)
    assert told is not None and told.count(" is not the one ") == 2
    assert "config.json has changed, pytorch_model.bin is new" in told and "model.safetensors is gone" in told


def test_a_copy_elsewhere_is_the_same_model(policy: Path, run: RunDirectory, tmp_path: Path) -> None:
    """As when a run goes on on another machine, or a hub's snapshot lies in another folder."""
    given = config(GRPO, KL)
    recognise(given, policy, run, begun=False)
    moved = policy.rename(tmp_path / "moved")
    assert changed(run) is not None, "what was loaded from there could not be again"
    recognise(given, moved, run, begun=True)
    assert changed(run) is None


def test_a_history_that_begins_anew_begins_with_what_is_there(policy: Path, run: RunDirectory) -> None:
    recognise(config(GRPO, KL), policy, run, begun=False)
    model_in(policy, b"another")
    recognise(config(GRPO, KL), policy, run, begun=False)
    recognise(config(GRPO, KL), policy, run, begun=True)


def test_a_directory_of_before_knows_nothing_and_holds_them_from_then_on(policy: Path, run: RunDirectory) -> None:
    recognise(config(GRPO, KL), policy, run, begun=True)
    assert json.loads(run.frozen_file.read_text())["the reference"]["path"] == str(policy)
    model_in(policy, b"another")
    with pytest.raises(UserError, match=r"the reference in .* is not the one"):
        recognise(config(GRPO, KL), policy, run, begun=True)


@pytest.mark.parametrize("kind", ["online", "offline"])
def test_a_driver_asks_before_it_reads_a_row_and_a_new_one_writes_down(
    kind: str, policy: Path, run: RunDirectory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    done: list[str] = []

    def note(what: str) -> SimpleNamespace:
        done.append(what)
        return SimpleNamespace(close=lambda: done.append(f"{what} closed"))

    for name in ("end_living", "load_tokenizer"):
        monkeypatch.setattr(driver, name, lambda *arguments: None)
    for name in ("load_inputs", "load_stored_inputs"):
        monkeypatch.setattr(driver, name, lambda *arguments: done.append("rows"))
    for name in ("start_online_workers", "start_offline_workers"):
        monkeypatch.setattr(driver, name, lambda *arguments: note("workers"))
    for name in ("PolicyGradientJob", "PreferenceJob"):
        monkeypatch.setattr(driver, name, lambda *arguments: note("job"))
    given = config(GRPO, KL) if kind == "online" else config(DPO)
    opened = SimpleNamespace(config=given, model_path=policy, directory=run)

    def whole(commit: Path | None) -> None:
        done.clear()
        with driver._whole(opened, None, commit):
            done.append("steps")

    whole(None)
    whole(tmp_path)
    assert done == ["workers", "rows", "job", "steps", "job closed"]
    model_in(policy, b"another")
    with pytest.raises(UserError, match=r"the reference in .* has changed"):
        whole(tmp_path)
    assert done == ["workers", "workers closed"]


def test_a_learner_that_is_built_again_would_load_it_and_is_not(
    policy: Path, run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    recognise(config(GRPO, KL), policy, run, begun=False)
    monkeypatch.setattr(recovery, "last_commit", lambda directory: (None, []))
    built: list[object] = []
    quiet = SimpleNamespace(event=lambda text: None, write=lambda *a, **k: None, closed=nullcontext, close=lambda: None)
    job = SimpleNamespace(
        doing=lambda what: None,
        commits=SimpleNamespace(drop=lambda: None),
        events=quiet,
        console=quiet,
        run=SimpleNamespace(metrics=quiet),
        directory=run,
        cut_back=lambda metrics: None,
        rebuild=built.append,
        begin_row=lambda: None,
    )
    recovery._go_back(job, lambda commit: None)
    assert built == [None]
    model_in(policy, b"another")
    with pytest.raises(RunFailed, match=r"the reference in .* has changed"):
        recovery._go_back(job, lambda commit: None)
    assert built == [None]


def test_a_scorer_that_was_started_again_has_loaded_it_and_its_scores_are_not_taken(
    policy: Path, scorer: Path, run: RunDirectory
) -> None:
    given = config(GRPO, f"reward.models={{quality: {{path: {scorer}}}}}")
    recognise(given, policy, run, begun=False)
    job = SimpleNamespace(config=given, directory=run, events=SimpleNamespace(write=lambda kind, text: None))
    scoring = Scoring(job, None)
    scoring._tell_of_restarts({1})
    scoring._tell_of_restarts({2})
    model_in(scorer, b"another")
    scoring._tell_of_restarts({2})
    with pytest.raises(RunFailed, match=r"the reward model quality in .* has changed"):
        scoring._tell_of_restarts({3})


def test_the_models_of_a_config_are_found_where_they_are_loaded_from(policy: Path, scorer: Path) -> None:
    given, path = kinds(policy, scorer)["the judge better"]
    assert frozen.frozen_models(given, policy) == {"the judge better": path.resolve()}
    asked = config(GRPO, "reward={judges: {better: {function: 'judges:ask'}}}")
    assert frozen_models(asked, policy) == {}, "a function has no weights"
