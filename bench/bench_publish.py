"""Seconds to publish SmolLM2-135M to two and to four engines, proof included, and the same bytes merely copied.

Runs of a few GRPO steps; `sync/seconds` spans the learner's gather, the object store, both
engines' load, the digest of what they received, and the probe on recorded samples. Beside it the learner's machine
copies 64 MB from memory to memory, in the same run. Also quoted, from the run with two: the share of a step outside
generate, score, update and publish. A last run, of the demo's recipe, tells the seconds
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

import yaml

from bench.tools.common import MODEL, TASK, table

WORKERS, STEPS = (2, 4), 6
DEMO = Path("deploy/recipes/ppo_demo.yaml")


def recipe(workers: int) -> dict:
    return {
        "name": "bench",
        "steps": STEPS,
        "algorithm": {"name": "grpo"},
        "model": {"path": MODEL, "max_length": 256},
        "data": {"reasoning_gym": {"task": TASK["task"], "params": TASK["task_params"], "size": 500}},
        "reward": {"functions": {"correct": {"function": "last_number"}}},
        "rollout": {"workers": workers, "prompts_per_step": 8, "sampling": {"samples_per_prompt": 8, "max_tokens": 24}},
        "learner": {"micro_batch_tokens": 1024, "optimizer": {"lr": 1e-6}},
        "checkpoint": {"every_steps": 1000, "export": False},
    }


def main() -> None:
    runs: dict[int, list[dict]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for workers in WORKERS:
            path, run = Path(folder) / f"{workers}.yaml", Path(folder) / f"run-{workers}"
            path.write_text(yaml.safe_dump(recipe(workers)))
            train(path, run)
            runs[workers] = lines(run / "metrics.jsonl")[2:]
        start_s = seconds_to_first_rollout(Path(folder) / "demo")

    def median(workers: int, name: str) -> float:
        return statistics.median(row[name] for row in runs[workers])

    published = [
        [
            workers,
            median(workers, "sync/seconds"),
            int(median(workers, "sync/bytes")),
            median(workers, "throughput/sync_bytes_per_s") / 1e9,
            median(workers, "throughput/copy_bytes_per_s") / 1e9,
            median(workers, "throughput/sync_bytes_per_s") / median(workers, "throughput/copy_bytes_per_s"),
        ]
        for workers in WORKERS
    ]
    table(
        f"Publish, proof included, SmolLM2-135M bfloat16, median of {STEPS - 1} steps",
        ["engines", "s", "bytes a version", "GB/s to all engines", "GB/s of a plain copy", "share of the copy"],
        published,
    )
    table(
        "Start and overhead",
        ["what", "value"],
        [
            ["share of a step outside generate, score, update, publish", median(WORKERS[0], "time/other_fraction")],
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
