"""One step off against synchronous: accuracy on held-out prompts after the same samples, three seeds.

Each seed trains SmolLM2 with GRPO under both schedules on the same prompts in the same order and answers the same 200
held-out prompts greedily. The paired difference is over all seeds' prompts, with its t interval: no worse means
that the interval holds zero or lies above it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from bench.tools.common import MODEL, TASK, table
from cluster.run.records.evaluation import difference_interval, mean_interval

SEEDS, STEPS, HELDOUT = (0, 1, 2), 20, 200
SCHEDULES = ("synchronous", "one_step_off")


def recipe(schedule: str, seed: int) -> dict:
    return {
        "name": f"staleness-{schedule}-{seed}",
        "steps": STEPS,
        "seed": seed,
        "algorithm": {"name": "grpo", "kl": {"coef": 0.02}},
        "model": {"path": MODEL, "max_length": 128},
        "data": {
            "reasoning_gym": {"task": TASK["task"], "params": TASK["task_params"], "size": 2000},
            "heldout": HELDOUT,
        },
        "reward": {"functions": {"correct": {"function": "last_number"}}},
        "rollout": {
            "prompts_per_step": 16,
            "sampling": {"samples_per_prompt": 4, "max_tokens": 24, "temperature": 0.6},
            "kv_cache_gb": 0.5,
            "schedule": {"kind": schedule},
        },
        "learner": {"micro_batch_tokens": 1024, "optimizer": {"lr": 2e-5}},
        "evaluation": {"metric": "correct"},
        "checkpoint": {"every_steps": STEPS, "export": False},
    }


def train(folder: Path, schedule: str, seed: int) -> tuple[list[float], float]:
    """(the final score of each held-out prompt, seconds a step)."""
    run, path = folder / f"{schedule}-{seed}", folder / f"{schedule}-{seed}.yaml"
    path.write_text(yaml.safe_dump(recipe(schedule, seed)))
    subprocess.run(
        [sys.executable, "-m", "cluster.cli", "train", str(path), "--run-dir", str(run)], check=True, stdout=sys.stderr
    )
    state = json.loads((run / "checkpoints" / f"step-{STEPS}" / "driver.json").read_text())
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][2:]
    return state["scores"]["correct"], sum(row["time/step_s"] for row in rows) / len(rows)


def main() -> None:
    scores: dict[str, list[float]] = {schedule: [] for schedule in SCHEDULES}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in SEEDS:
            for schedule in SCHEDULES:
                found, step_s = train(Path(folder), schedule, seed)
                scores[schedule] += found
                own = mean_interval(found)
                rows.append([seed, schedule, own.mean, f"{own.low:.3f} to {own.high:.3f}", step_s])
    table(
        f"Accuracy on {HELDOUT} held-out prompts after {STEPS} steps of 16 x 4 samples, SmolLM2-135M",
        ["seed", "schedule", "correct", "95 %", "s a step"],
        rows,
    )
    gain = difference_interval(scores["one_step_off"], scores["synchronous"])
    table(
        "One step off less synchronous, all seeds",
        ["difference", "95 %"],
        [[gain.mean, f"{gain.low:+.3f} to {gain.high:+.3f}"]],
    )


if __name__ == "__main__":
    main()
