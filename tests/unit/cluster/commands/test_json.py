"""`--json`: the keys of each verb, worked out by hand, and stdout with nothing else on it."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from cluster import cli, comparison
from cluster.comparison import Answers
from cluster.config import load_config
from cluster.run.directory import RunDirectory
from cluster.run.ledger import Ledger
from cluster.run.records.metrics import MetricsWriter
from cluster.run.records.samples import read_samples, write_samples
from cluster.run.stages import Finished, PipelineDirectory
from cluster.service import jobs as service
from cluster.service.jobs import JobView
from tests.fixtures.configs import DPO, GRPO
from tests.fixtures.fake_run import make_fake_run
from tests.unit.cluster.commands.test_plan import a_run
from tests.unit.cluster.config.test_pipeline import given as a_pipeline


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Any:
    """Call the command line with the verbs of this checkout; (exit code, what stdout says as JSON, stderr)."""

    def call(*arguments: object) -> tuple[int, Any, str]:
        monkeypatch.setattr(sys, "argv", ["raylign", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capfd.readouterr()
        return int(ended.value.code or 0), json.loads(out) if out else None, err

    return call


def test_the_ledger_s_balance_and_reasons(said: Any, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("steps: 3\n")
    book = Ledger(tmp_path / "ledger.sqlite")
    book.admit(1, [(0, n, n) for n in range(10)])
    balance = {"admitted": 10, "trained": 0, "dropped": 0, "in_flight": 10, "balanced": True, "reasons": {}}
    nothing = {"run_dir": str(tmp_path), **balance, "last_trained_step": None, "policy_version": None}
    assert said("ledger", tmp_path, "--json") == (0, nothing, "")
    book.dropped([0, 1], "no score")
    book.dropped([2], "stale")
    book.trained([3, 4, 5], 2)
    book.record_version(7, "d" * 64, 1)
    book.close()
    balance |= {"trained": 3, "dropped": 3, "in_flight": 4, "reasons": {"no score": 2, "stale": 1}}
    whole = {"run_dir": str(tmp_path), **balance, "last_trained_step": 2, "policy_version": 7}
    assert said("ledger", tmp_path, "--json") == (0, whole, "")


def test_an_error_is_a_sentence_on_stderr_and_stdout_stays_empty(said: Any, tmp_path: Path) -> None:
    code, out, err = said("ledger", tmp_path, "--json")
    assert (code, out) == (2, None)
    assert err.startswith(f"{tmp_path} holds no run")


def test_the_status_of_a_run(said: Any, tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run")
    run.config_file.write_text("steps: 40\n")
    writer = MetricsWriter(run)
    writer.write(9, {"time/step_s": 6.0, "eval/reward": 0.5})
    writer.write(10, {"time/step_s": 6.0, "reward/mean": 0.25, "loss": math.nan})
    writer.close()
    expected = {
        "run_dir": str(run),
        "step": 10,
        "steps": 40,
        "seconds_left": 180.0,
        "ended": None,
        "running": False,
        "workers": None,
        "metrics": {"eval/reward": 0.5, "reward/mean": 0.25, "time/step_s": 6.0},
    }
    assert said("status", run.root, "--json") == (0, {"job": None, "run": expected}, "")


def test_the_status_of_a_pipeline_has_its_stages(said: Any, tmp_path: Path) -> None:
    directory = PipelineDirectory.create(tmp_path / "rlhf")
    directory.write(a_pipeline())
    (directory.root / "01-sft" / "policy" / "step-30").mkdir(parents=True)
    (directory.root / "01-sft" / "policy" / "step-30" / "config.json").write_text("{}")
    directory.record(Finished("sft", "01-sft", "01-sft/policy/step-30", "last step", "all steps"))
    (directory.root / "02-judge").mkdir()
    (directory.root / "02-judge" / "config.yaml").write_text("steps: 60\n")
    code, out, _ = said("status", directory.root, "--json")
    assert (code, out["job"], out["run"]["run_dir"]) == (0, None, str(directory))
    sft, judge, ppo = out["run"]["stages"]
    done = {"name": "sft", "state": "done", "reason": "all steps", "model": "01-sft/policy/step-30", "run": None}
    assert sft == done
    assert (judge["state"], judge["reason"], judge["run"]["step"], judge["run"]["steps"]) == ("begun", None, 0, 60)
    assert ppo == {"name": "ppo", "state": "waiting", "reason": None, "model": None, "run": None}


class Cluster:
    """Two jobs: one of ours whose run can be read, one of somebody else."""

    def __init__(self, run_dir: Path) -> None:
        ours = JobView("mine", "RUNNING", "", str(run_dir), 100.0, None)
        self.views = {"mine": ours, "other": JobView("other", "FAILED", "exit code 1", None, 50.0, 60.0)}

    def list(self) -> list[JobView]:
        return list(self.views.values())

    def status(self, name: str) -> JobView:
        return self.views[name]


def test_jobs_and_the_status_of_one(said: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.yaml").write_text("steps: 4\n")
    monkeypatch.setattr(service, "connect", lambda address: Cluster(tmp_path))
    mine = {"id": "mine", "state": "RUNNING", "message": "", "run_dir": str(tmp_path)} | {
        "started_s": 100.0,
        "ended_s": None,
    }
    other = {"id": "other", "state": "FAILED", "message": "exit code 1", "run_dir": None}
    other |= {"started_s": 50.0, "ended_s": 60.0}
    assert said("jobs", "--json") == (0, [mine, other], "")
    code, out, _ = said("status", "mine", "--json")
    assert (code, out["job"], out["run"]["steps"]) == (0, mine, 4)
    assert said("status", "other", "--json") == (0, {"job": other, "run": None}, "")


def test_a_plan_s_forecasts_with_the_best_marked(said: Any, tmp_path: Path) -> None:
    run, _ = a_run(tmp_path / "run")
    kept = make_fake_run(tmp_path / "fake")
    write_samples(run.samples_file(1), read_samples(kept.samples_file(kept.sample_steps()[0])))
    code, out, err = said("plan", run.root, "--workers", "1,2", "--json")
    assert (code, err, out["run_dir"], out["one_machine"]) == (0, "", str(run), True)
    kinds = ("synchronous", "one_step_off", "asynchronous")
    found = [(each["schedule"], each["workers"], each["ranks"]) for each in out["forecasts"]]
    assert found == [(kind, workers, 1) for kind in kinds for workers in (1, 2)]
    (best,) = (each for each in out["forecasts"] if each["best"])
    assert best["step_s"] == min(each["step_s"] for each in out["forecasts"])
    assert all(0 <= each[key] <= 1 for each in out["forecasts"] for key in ("learner_idle", "workers_idle"))
    assert said("plan", run.root, "--workers", "many", "--json")[:2] == (2, None)


def rows_of(folder: Path, count: int = 6) -> Path:
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"{i}+1?", "answer": str(i + 1)}) + "\n" for i in range(count)))
    return rows


def test_a_good_recipe_is_checked_with_what_is_known_of_it(said: Any, tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(GRPO)
    given = [f"model.path={tiny_model}", f"data.path={rows_of(tmp_path)}", "model.max_length=128", "data.heldout=2"]
    code, out, _ = said("check", tmp_path / "recipe.yaml", *given, "--run-dir", tmp_path / "run", "--json")
    assert (code, out["config"], out["ok"], out["problems"]) == (0, str(tmp_path / "recipe.yaml"), True, [])
    (run,) = out["runs"]
    assert (run["stage"], run["name"], run["algorithm"], run["model"]) == (None, "small", "grpo", str(tiny_model))
    assert (run["cannot_run"], run["data"]["rows"]["to_train_on"], run["data"]["rows"]["held_out"]) == ([], 4, 2)
    assert {"longest", "window", "samples"} < run["data"].keys() and len(run["data"]["samples"]) == 3
    assert run["rewards"] == {"answered": {"correct": 1.0}, "ignorant": {"correct": 0.0}}
    assert {role["role"] for role in run["placement"]["roles"]} == {"rollout", "learner", "scorer"}
    assert run["memory"]["total_bytes"] > sum(run["memory"]["roles"][0]["parts"].values()) > 0
    assert set(run["runs_on"]) == {"text", "gpus", "gpu_bytes"} and run["parameters"] > 0


def test_a_bad_recipe_s_problems_are_json_too_and_the_exit_code_is_2(said: Any, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(DPO + "learner: {zero: {stage: 4}}\nweights: {bukket_mb: 1}\n")
    code, out, err = said("check", recipe, "--json")
    assert (code, out["ok"], out["runs"]) == (2, False, [])
    assert out["problems"] == [
        {"path": "learner.zero.stage", "text": "must be 0, 1, 2 or 3, got 4"},
        {"path": "weights.bukket_mb", "text": "unknown key; did you mean weights.bucket_mb?"},
    ]
    assert err.startswith(f"{recipe}: 2 problems\n  learner.zero.stage: must be")


def test_a_problem_of_the_data_is_json_beside_what_is_known(said: Any, tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(DPO)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a"}\n')
    given = [f"model.path={tiny_model}", f"data.path={tmp_path / 'rows.jsonl'}"]
    code, out, err = said("check", tmp_path / "recipe.yaml", *given, "--run-dir", tmp_path / "run", "--json")
    assert (code, out["ok"], [each["path"] for each in out["problems"]]) == (2, False, [f"{tmp_path}/rows.jsonl:1"])
    assert out["problems"][0]["text"] in err
    assert out["runs"][0]["algorithm"] == "dpo"


def test_a_pipeline_s_stages_are_runs(said: Any, tmp_path: Path, tiny_model: Path) -> None:
    stage = {"name": "sft", "algorithm": "sft", "data": {"path": "rows.jsonl"}}
    defaults = {"model": {"path": str(tiny_model), "max_length": 128}}
    (tmp_path / "p.yaml").write_text(yaml.safe_dump({"name": "p", "defaults": defaults, "stages": [stage]}))
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "c"}\n')
    code, out, _ = said("check", tmp_path / "p.yaml", "--run-dir", tmp_path / "run", "--json")
    assert (code, [(run["stage"], run["name"]) for run in out["runs"]]) == (2, [("sft", "p.sft")])
    assert [each["path"] for each in out["problems"]] == [f"sft: {tmp_path}/rows.jsonl:2"]


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models that answer four rows by their name, and a judge; both print, as libraries do."""

    def answers(config: Any, model: str) -> Answers:
        print(f"loading {model}")
        right = {"base": [0.0, 0.0, 1.0, 0.0], "tuned": [1.0, 1.0, 1.0, math.nan]}[model]
        return Answers({"reward": np.array(right), "correct": np.array(right)})

    monkeypatch.setattr(comparison, "answers", answers)
    monkeypatch.setattr(comparison, "verdicts", lambda *given: np.array([1.0, 0.5, 0.0, math.nan]))


@pytest.mark.usefixtures("answered")
def test_models_compared_with_their_difference_and_a_judge(said: Any, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(GRPO)
    two = ("--model", "base", "--model", "tuned", "--judge", "m:f", "data.heldout=4")
    code, out, err = said("eval", recipe, *two, "--json")
    assert (code, "loading base" in err, out["config"], out["rows"]) == (0, True, str(recipe), 4)
    assert out["metric"] == load_config(recipe).evaluation.metric == "reward"
    base, tuned = out["models"]
    assert (base["model"], base["scores"]["correct"]["mean"], base["perplexity"]) == ("base", 0.25, None)
    assert base["scores"]["correct"]["low"] < 0.25 < base["scores"]["correct"]["high"]
    assert (tuned["model"], tuned["scores"]["reward"]["mean"]) == ("tuned", 1.0)
    assert (out["difference"]["of"], out["difference"]["minus"]) == ("tuned", "base")
    assert out["difference"]["mean"] == pytest.approx(2 / 3), "of the three rows that both have a score of"
    judged = out["judge"]
    assert [judged[key] for key in ("wins", "ties", "losses", "without_verdict")] == [1, 1, 1, 1]
    assert judged["win_rate"]["mean"] == 0.5


@pytest.mark.usefixtures("answered")
def test_one_model_has_no_difference_and_a_judge_wants_two(said: Any, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(GRPO)
    _, out, _ = said("eval", recipe, "--model", "base", "data.heldout=4", "--json")
    assert (out["difference"], out["judge"], len(out["models"])) == (None, None, 1)
    twice = ("--model", "base", "--model", "base", "--judge", "m:f", "data.heldout=4")
    code, nothing, err = said("eval", recipe, *twice, "--json")
    assert (code, nothing, "--judge compares the responses of two models" in err) == (2, None, True)


@pytest.mark.usefixtures("answered")
def test_a_run_of_before_is_evaluated_whatever_keys_it_saved_that_are_gone(said: Any, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(GRPO)
    saved = load_config(recipe).model_dump(mode="json")
    saved["learner"]["zero"]["nvme_path"] = None
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(saved))
    code, out, _ = said("eval", tmp_path / "run", "--model", "base", "data.heldout=4", "--json")
    assert (code, out["rows"]) == (0, 4)


def test_what_a_library_or_a_child_prints_goes_to_stderr_and_no_number_is_nan() -> None:
    code = (
        "import math, os, subprocess\n"
        "from cluster.commands.output import print_json\n"
        "def make():\n"
        "    print('a print')\n"
        "    os.write(1, b'from C\\n')\n"
        "    subprocess.run(['echo', 'from a child'])\n"
        "    return {'loss': math.nan, 'steps': (1, math.inf), 'name': 'é'}\n"
        "print_json(make)\n"
        "print('after')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    text, _, after = done.stdout.rstrip().rpartition("\n")
    assert (json.loads(text), after) == ({"loss": None, "steps": [1, None], "name": "é"}, "after")
    assert {"a print", "from C", "from a child"} == set(done.stderr.split("\n")) - {""}
