"""A run of SmolLM2 with vLLM that is scaled 1 -> 4 -> 2 workers while it learns, and what `raylign status` said.

Writes the recording as Markdown to the file that is named, and keeps the run's directory, whose report has the
timeline. Not a measurement: on two cores four engines share what one had.

    python -m bench.tools.record_scaling bench/results/scaling.md runs/scaling
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import yaml

from bench.tools.common import MODEL, TASK

STEPS, LOOK_EVERY_S = 60, 5.0
CHANGES = ((3, 4), (22, 2))
"""(after so many steps, workers)."""
RECIPE = {
    "name": "scaling",
    "steps": STEPS,
    "algorithm": {"name": "grpo", "kl": {"coef": 0.02}},
    "model": {"path": MODEL, "max_length": 128},
    "data": {
        "reasoning_gym": {"task": TASK["task"], "params": TASK["task_params"], "size": 2000},
        "heldout": 0,
    },
    "reward": {"functions": {"correct": {"function": "last_number"}}},
    "rollout": {
        "prompts_per_step": 8,
        "sampling": {"samples_per_prompt": 4, "max_tokens": 24, "temperature": 0.6},
        "kv_cache_gb": 0.25,
        "schedule": {"kind": "asynchronous", "max_staleness": 2},
    },
    "learner": {"micro_batch_tokens": 1024, "optimizer": {"lr": 1e-5}},
    "checkpoint": {"every_steps": 1000, "export": False},
}


def raylign(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "cluster.cli", *map(str, arguments)]


def said(*arguments: object) -> str:
    done = subprocess.run(raylign(*arguments), capture_output=True, text=True)
    return (done.stdout + done.stderr).strip()


def looks(run: Path, process: subprocess.Popen[bytes]) -> Iterator[tuple[float, int]]:
    """(seconds since the start, the last step) again and again while the run goes on."""
    began = time.monotonic()
    while process.poll() is None:
        time.sleep(LOOK_EVERY_S)
        metrics = run / "metrics.jsonl"
        lines = metrics.read_text().splitlines() if metrics.exists() else []
        yield time.monotonic() - began, int(json.loads(lines[-1])["step"]) if lines else 0


def record(run: Path, recipe: Path) -> list[str]:
    """The commands with what they printed, each time another line than the last."""
    lines, last, changes = [], "", list(CHANGES)
    process = subprocess.Popen(raylign("train", recipe, "--run-dir", run), stdout=sys.stderr)
    for seconds, step in looks(run, process):
        if changes and step >= changes[0][0]:
            workers = changes.pop(0)[1]
            lines.append(f"{seconds:5.0f} s  $ raylign scale {run.name} --rollout {workers}")
            lines.append(f"         {said('scale', run, '--rollout', workers)}")
        shown = [line.strip() for line in said("status", run).splitlines()[:2]]
        if len(shown) == 2 and shown[1].startswith("workers:"):
            states = " ".join(word for word in shown[1].split() if not word.rstrip(",").isdigit())
            if states != last:
                last = states
                lines.append(f"{seconds:5.0f} s  $ raylign status {run.name}")
                lines += [f"         {line.replace(str(run), run.name)}" for line in shown]
    if process.returncode:
        raise SystemExit(process.returncode)
    return lines


def main() -> None:
    target, run = Path(sys.argv[1]), Path(sys.argv[2])
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "recipe.yaml"
        recipe.write_text(yaml.safe_dump(RECIPE))
        lines = record(run, recipe)
    events = [json.loads(line)["text"] for line in (run / "events.jsonl").read_text().splitlines()]
    subprocess.run(raylign("report", run), check=True, stdout=sys.stderr)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(
        f"# A run scaled 1, 4, 2 while it learns ({time.strftime('%Y-%m-%d')}, two cores)\n\n"
        "Seconds from `raylign train`; `raylign status` every five seconds, shown when the workers changed. Written\n"
        "by `python -m bench.tools.record_scaling`.\n\n```\n"
        + "\n".join(lines)
        + "\n```\n\nIts events:\n\n```\n"
        + "\n".join(events)
        + "\n```\n"
    )


if __name__ == "__main__":
    main()
