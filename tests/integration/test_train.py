"""A whole run on real parts: Ray, vLLM, DeepSpeed, a tiny random model; killed, resumed, and compared."""

from __future__ import annotations

import os
import signal
import sqlite3
from pathlib import Path

import pytest

from cluster.run.checkpoints import checkpoint
from tests.integration.runs import learned, left_behind, recipe, rows, start, stop, train, wait_for_step


def test_a_run_leaves_every_file_of_the_run_directory(whole_run: Path) -> None:
    names = {"config.yaml", "metrics.jsonl", "events.jsonl", "ledger.sqlite", "report.html", "samples", "checkpoints"}
    assert names <= {p.name for p in whole_run.iterdir()}
    assert [row["step"] for row in rows(whole_run)] == [0, 1, 2, 3, 4]
    assert checkpoint.steps(whole_run / "checkpoints") == [2, 4]
    assert all(checkpoint.damage(whole_run / "checkpoints" / f"step-{n}") is None for n in (2, 4))


def test_every_prompt_was_trained_once(whole_run: Path) -> None:
    with sqlite3.connect(whole_run / "ledger.sqlite") as db:
        states = db.execute("SELECT state, count(*), count(DISTINCT position) FROM prompts GROUP BY state").fetchall()
        versions = [n for (n,) in db.execute("SELECT number FROM versions ORDER BY number")]
    assert states == [("trained", 16, 16)]
    assert versions == [1, 2, 3, 4]


def test_the_first_step_starts_from_the_reference_and_the_policy_moves_away(whole_run: Path) -> None:
    steps = rows(whole_run)[1:]
    assert steps[0]["kl/ref"] < 1e-9
    assert steps[0]["policy/ratio"] == pytest.approx(1.0, abs=1e-6)
    assert steps[-1]["kl/ref"] > 1e-3
    assert all(row["sync/mismatch"] < 1e-4 for row in steps)
    assert all(row["policy/grad_norm"] > 0 for row in steps)


def test_the_exported_policy_loads_in_plain_transformers(whole_run: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(whole_run / "policy" / "step-4")
    tokenizer = AutoTokenizer.from_pretrained(whole_run / "policy" / "step-4")
    assert tokenizer.chat_template
    assert model.config.tie_word_embeddings
    assert sum(p.numel() for p in model.parameters()) > 0


def test_a_killed_run_resumes_to_the_same_metrics(whole_run: Path, tiny_model: Path, tmp_path: Path) -> None:
    """SIGKILL after step 3, whose commit is step 2: step 3 is done again, and every number is the same."""
    path = recipe(tmp_path, tiny_model)
    process = start("train", path, "--run-dir", tmp_path / "run", log=tmp_path / "run.log")
    try:
        wait_for_step(process, tmp_path / "run", 3)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(10)
    finally:
        stop(process)
    assert left_behind(tmp_path / "run.log") == [], "workers outlived their driver"
    train(path, tmp_path / "run", "--resume")
    assert learned(rows(tmp_path / "run")) == learned(rows(whole_run))
    with sqlite3.connect(tmp_path / "run" / "ledger.sqlite") as db:
        assert db.execute("SELECT state, count(*) FROM prompts GROUP BY state").fetchall() == [("trained", 16)]
        numbers = [n for (n,) in db.execute("SELECT number FROM versions ORDER BY number")]
    assert numbers == sorted(set(numbers)) and numbers[-1] > 4, "versions only grow, also across restarts"


def test_ctrl_c_leaves_a_resumable_run_and_no_processes(tiny_model: Path, tmp_path: Path) -> None:
    path = recipe(tmp_path, tiny_model, steps=50, checkpoint={"every_steps": 1})
    process = start("train", path, "--run-dir", tmp_path / "run", log=tmp_path / "run.log")
    try:
        wait_for_step(process, tmp_path / "run", 2)
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(30) == 130
    finally:
        stop(process)
    assert "--resume" in (tmp_path / "run.log").read_text()
    assert checkpoint.latest_whole(tmp_path / "run" / "checkpoints")[0] is not None
    assert left_behind(tmp_path / "run.log") == []
