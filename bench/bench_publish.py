"""Seconds to publish SmolLM2-135M to two engines, proof included, and the same bytes merely copied.

A run of a few GRPO steps with two rollout workers; `sync/seconds` spans the learner's gather, the object store, both
engines' load, the digest of what they received, and the probe on recorded samples. Also quotes, from the same run,
the share of a step outside generate, score, update and publish. A second run, of the demo's recipe, tells the seconds
from `raylign train` to its first rollout: the engines have then generated the batch on which they are calibrated.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import yaml

from bench.common import MODEL, TASK, seconds, table

WORKERS, STEPS = 2, 6
DEMO = Path("deploy/recipes/ppo_demo.yaml")


def main() -> None:
    recipe = {
        "name": "bench",
        "steps": STEPS,
        "algorithm": {"name": "grpo"},
        "model": {"path": MODEL, "max_length": 256},
        "data": {"reasoning_gym": {"task": TASK["task"], "params": TASK["task_params"], "size": 500}},
        "reward": {"functions": {"correct": {"function": "last_number"}}},
        "rollout": {"workers": WORKERS, "prompts_per_step": 8, "sampling": {"samples_per_prompt": 8, "max_tokens": 24}},
        "learner": {"micro_batch_tokens": 1024, "optimizer": {"lr": 1e-6}},
        "checkpoint": {"every_steps": 1000, "export": False},
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe))
        run = Path(folder) / "run"
        train(path, run)
        rows = lines(run / "metrics.jsonl")[1:]
        start_s = seconds_to_first_rollout(Path(folder) / "demo")
    first = rows[0]
    sync_s = statistics.median(row["sync/seconds"] for row in rows[1:])
    size = int(first["sync/bytes"])
    payload = np.ones(size, np.uint8)
    copy_s = statistics.median(seconds(payload.copy) for _ in range(5))
    other = statistics.median(row["time/other_fraction"] for row in rows[1:])
    table(
        f"Publish to {WORKERS} engines, start and overhead, SmolLM2-135M bfloat16, median of {STEPS - 1} steps",
        ["what", "value"],
        [
            ["publish, proof included (s)", sync_s],
            ["bytes a version", size],
            ["plain copy of those bytes, for scale (s)", copy_s],
            ["share of a step outside generate, score, update, publish", other],
            ["`raylign train` to the first rollout, demo recipe, warm cache (s)", start_s],
        ],
    )


def train(recipe: Path, run: Path, *overrides: str) -> None:
    command = [sys.executable, "-m", "cluster.cli", "train", str(recipe), *overrides, "--run-dir", str(run)]
    subprocess.run(command, check=True, stdout=sys.stderr)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def seconds_to_first_rollout(run: Path) -> float:
    began = time.time()
    train(DEMO, run, "steps=3", "evaluation.prompts=8", "checkpoint.export=false")
    return next(event["time"] for event in lines(run / "events.jsonl") if event["kind"] == "start") - began


if __name__ == "__main__":
    main()
