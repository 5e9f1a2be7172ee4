"""Small real runs through the command line, shared by the integration tests.

A recipe is a dict over TINY; `train` runs `raylign train` as its user would, in a process of its own.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import yaml

REPO = Path(__file__).resolve().parents[2]
CHAIN_SUM = {
    "task": "chain_sum",
    "params": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2},
    "size": 200,
}
TINY: dict[str, Any] = {
    "name": "tiny",
    "steps": 4,
    "deterministic": True,
    "algorithm": {"name": "grpo"},
    "model": {"dtype": "float32", "max_length": 256},
    "data": {"reasoning_gym": CHAIN_SUM, "heldout": 8},
    "reward": {"functions": {"digits": {"function": "tests/integration/rewards.py:digit_share"}}},
    "rollout": {"prompts_per_step": 4, "sampling": {"max_tokens": 12, "samples_per_prompt": 4}, "kv_cache_gb": 0.25},
    "learner": {"micro_batch_tokens": 512, "optimizer": {"lr": 1e-3}},
    "checkpoint": {"every_steps": 2},
}
TIMES = ("time", "throughput/", "role/", "sync/seconds")
"""Metrics that measure the machine: the only ones that may differ between equal runs."""


MARK = "RAYLIGN_TEST_RUN"
"""Set in a run's environment, which all of its processes inherit: how a test finds what was left behind."""


def left_behind(log: Path, timeout_s: float = 20) -> list[str]:
    """Command lines of the run's processes that are still there after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while (found := marked(str(log))) and time.monotonic() < deadline:
        time.sleep(0.5)
    return [line for process in found if (line := _command_line(process))]


def marked(mark: str) -> list[psutil.Process]:
    """Live processes that were started under this mark."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):  # ended while we looked, or not ours
            continue
    return found


def _command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for key, value in changes.items():
        nested = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = merged(out[key], value) if nested else value
    return out


def recipe(directory: Path, model: Path, /, **changes: Any) -> Path:
    """A recipe file: TINY with changes."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "recipe.yaml"
    path.write_text(yaml.safe_dump(merged(merged(TINY, {"model": {"path": str(model)}}), changes)))
    return path


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "cluster.cli", *map(str, arguments)]


def start(*arguments: object, log: Path, **environment: str) -> subprocess.Popen[bytes]:
    """`raylign ARGUMENTS` in its own process group, output to `log`."""
    with log.open("wb") as out:
        return subprocess.Popen(
            command(*arguments),
            cwd=REPO,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "RAY_ADDRESS": "", MARK: str(log), **environment},
        )


def train(recipe_path: Path, run_dir: Path, *arguments: object, timeout_s: float = 280) -> str:
    """Train to the end; the output. Fails the test when the run does."""
    log = run_dir.with_suffix(".log")
    process = start("train", recipe_path, "--run-dir", run_dir, *arguments, log=log)
    try:
        code = process.wait(timeout_s)
    finally:
        stop(process)
    assert code == 0, log.read_text()[-4000:]
    return log.read_text()


def stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


def rows(run_dir: Path) -> list[dict[str, Any]]:
    file = run_dir / "metrics.jsonl"
    lines = file.read_text().split("\n")[:-1] if file.exists() else []
    return [json.loads(line) for line in lines]


def wait_for_step(process: subprocess.Popen[bytes], run_dir: Path, step: int, timeout_s: float = 240) -> None:
    """Until the run's metrics hold `step`. Polls a file: the run is another process."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if any(row["step"] >= step for row in rows(run_dir)):
            return
        assert process.poll() is None, f"the run ended before step {step}: {run_dir.with_suffix('.log').read_text()}"
        time.sleep(0.05)
    raise AssertionError(f"step {step} did not come within {timeout_s} s")


def learned(rows_: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without what measures the machine."""
    return [{k: v for k, v in row.items() if not k.startswith(TIMES)} for row in rows_]
