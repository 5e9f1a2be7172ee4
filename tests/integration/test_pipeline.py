"""A whole pipeline through the command line: SFT, a reward model, GRPO against it; interrupted in its last stage."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.runs import CHAIN_SUM, left_behind, rows, start, stop, train, wait_for_step

STEPS = 6


@pytest.fixture(scope="module")
def pipeline(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pipeline's file: demonstrations of digits, pairs that prefer digits, and the rule watched at weight 0."""
    folder = tmp_path_factory.mktemp("pipeline")
    letters = ["".join(chr(97 + i * k % 26) for k in range(1, 6)) for i in range(64)]
    shown = [{"prompt": f"item {i}", "completion": f"{i * 7919 % 100000}"} for i in range(64)]
    pairs = [
        {"prompt": row["prompt"], "chosen": row["completion"], "rejected": other}
        for row, other in zip(shown, letters, strict=True)
    ]
    for name, found in (("shown", shown), ("pairs", pairs)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    path = folder / "pipeline.yaml"
    path.write_text(yaml.safe_dump(tree(tiny_model, folder)))
    return path


def tree(model: Path, folder: Path) -> dict[str, Any]:
    return {
        "name": "tiny-rlhf",
        "defaults": {
            "model": {"path": str(model), "dtype": "float32", "max_length": 256},
            "data": {"heldout": 8},
            "learner": {"backend": "torch", "micro_batch_tokens": 512, "optimizer": {"lr": 1e-3}},
        },
        "stages": [
            {
                "name": "sft",
                "steps": 3,
                "algorithm": {"name": "sft", "sft": {"rows_per_step": 8}},
                "data": {"path": str(folder / "shown.jsonl")},
            },
            {
                "name": "judge",
                "steps": 4,
                "algorithm": {"name": "reward_model", "reward_model": {"rows_per_step": 8}},
                "model": {"path": "stage:sft"},
                "data": {"path": str(folder / "pairs.jsonl")},
            },
            {
                "name": "grpo",
                "steps": STEPS,
                "algorithm": {"name": "grpo", "kl": {"place": "none"}},
                "model": {"path": "stage:sft"},
                "data": {"reasoning_gym": CHAIN_SUM},
                "reward": {
                    "models": {"rm": {"path": "stage:judge"}},
                    "functions": {"digits": {"function": "tests/integration/rewards.py:digit_share", "weight": 0.0}},
                },
                "rollout": {
                    "engine": "torch",
                    "prompts_per_step": 2,
                    "sampling": {"max_tokens": 8, "samples_per_prompt": 4},
                },
                "evaluation": {"metric": "rm"},
                "checkpoint": {"every_steps": 1},
            },
        ],
    }


@pytest.mark.timeout(600)
def test_an_interrupted_pipeline_goes_on_in_the_stage_that_was_not_done(pipeline: Path, tmp_path: Path) -> None:
    where = tmp_path / "run"
    process = start("train", pipeline, "--run-dir", where, log=tmp_path / "run.log")
    try:
        wait_for_step(process, where / "03-grpo", 2)
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(30) == 130
    finally:
        stop(process)
    assert f"resume with: raylign train {pipeline} --run-dir {where} --resume" in (tmp_path / "run.log").read_text()
    assert left_behind(tmp_path / "run.log") == []
    done = json.loads((where / "pipeline.json").read_text())["finished"]
    assert [row["stage"] for row in done] == ["sft", "judge"]
    before = {stage: (where / stage / "events.jsonl").read_bytes() for stage in ("01-sft", "02-judge")}
    first = rows(where / "03-grpo")[:2]

    said = train(pipeline, where, "--resume")

    assert "stage 1 of 3, sft: done before" in said
    assert {stage: (where / stage / "events.jsonl").read_bytes() for stage in before} == before, "a stage was redone"
    assert rows(where / "03-grpo")[:2] == first, "committed steps stand"
    assert [row["step"] for row in rows(where / "03-grpo")] == list(range(STEPS + 1))
    kinds = [json.loads(line)["kind"] for line in (where / "03-grpo" / "events.jsonl").read_text().splitlines()]
    assert kinds.count("start") == 2 and kinds[-1] == "end", "a resumed stage's events are recorded"
    done = json.loads((where / "pipeline.json").read_text())["finished"]
    assert [row["stage"] for row in done] == ["sft", "judge", "grpo"]
    _each_stage_took_the_formers_output(where, {row["stage"]: row["model"] for row in done})
    _the_report_names_every_stage(where)


def _each_stage_took_the_formers_output(where: Path, models: dict[str, str]) -> None:
    judge, grpo = (yaml.safe_load((where / name / "config.yaml").read_text()) for name in ("02-judge", "03-grpo"))
    assert judge["model"]["path"] == grpo["model"]["path"] == str(where / models["sft"])
    assert grpo["reward"]["models"]["rm"]["path"] == str(where / models["judge"])
    kind = json.loads((where / models["judge"] / "config.json").read_text())["architectures"]
    assert kind == ["LlamaForSequenceClassification"]
    row = rows(where / "03-grpo")[-1]
    assert {"reward/rm", "reward/digits", "eval/rm", "eval/digits"} <= row.keys()
    assert row["reward/mean"] == pytest.approx(row["reward/rm"]), "weight 0 adds nothing"
    assert row["reward/digits"] != pytest.approx(row["reward/rm"])


def _the_report_names_every_stage(where: Path) -> None:
    page = (where / "report.html").read_text()
    assert all(f'id="stage-{name}"' in page for name in ("sft", "judge", "grpo"))
    assert "not finished" not in page
    assert page.count("plotly.js v") == 1, "plotly rides along once, not once a stage"
