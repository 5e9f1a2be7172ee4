"""Reward functions that never return, end their process or allocate without end, and a second driver on the run: each
costs its sample a score and nothing else. What each alone does is in tests/integration/test_reward_process.py."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.chaos.harness import CHANGES, STEPS, Fault, assert_balanced, report, run_with, wait_for_strike
from tests.integration.runs import REPO, command, merged, recipe, rows

FUNCTION = '''
import json, os, time
from pathlib import Path

FOLDER = Path(__file__).with_name("run.faults")
NAMES = {11: "reward function never returns", 14: "reward function ends its process", 17: "reward function allocates"}
SPOILED = 20

def number(prompt):
    """How many other prompts came before it: the eight of the evaluation, then those of the steps."""
    file = FOLDER / "seen"
    seen = json.loads(file.read_text()) if file.exists() else []
    if prompt not in seen:
        seen.append(prompt)
        file.write_text(json.dumps(seen))
    return seen.index(prompt)

def strikes(fault):
    """Whether it has not struck yet."""
    file = FOLDER / f"{fault}.json"
    if file.exists():
        return False
    file.write_text(json.dumps({"pid": os.getpid(), "time": time.time()}))
    return True

def digits(prompt, response, data):
    scoring = os.environ.get("RAYLIGN_ROLE", "").startswith("scorer")  # not the check of a config
    n, hoard = number(prompt) if scoring else -1, []
    if n in NAMES and strikes(NAMES[n]):
        while "returns" in NAMES[n]:
            time.sleep(1)
        if "ends" in NAMES[n]:
            os._exit(3)
        while True:
            hoard.append(bytearray(64 << 20))
    if n == SPOILED:
        strikes("reward not a number")
        return float("nan")
    return sum(c.isdigit() for c in response) / max(1, len(response))
'''
HANG, EXIT, HOARD, SPOILED = NAMES = (
    "reward function never returns",
    "reward function ends its process",
    "reward function allocates",
    "reward not a number",
)
REASONS = {
    HANG: "took longer than 20 s and was killed",
    EXIT: "its process exited with code 3",
    HOARD: "MemoryError",
    SPOILED: "returned nan",
}


@pytest.mark.chaos
def test_a_reward_function_that_misbehaves_costs_its_samples_and_a_second_driver_is_refused(
    tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "function.py").write_text(FUNCTION)
    digits = {"function": f"{tmp_path / 'function.py'}:digits", "timeout_s": 20}
    reward = {"functions": {"digits": digits}, "memory_limit_gb": 1.0, "max_failures": 10}
    path, run = recipe(tmp_path, tiny_model, **merged(CHANGES, {"reward": reward})), tmp_path / "run"

    def start_a_second_driver(process: subprocess.Popen[bytes]) -> None:
        wait_for_strike(run, HANG)
        again = command("train", path, "--run-dir", run, "--resume")
        second = subprocess.run(again, cwd=REPO, capture_output=True, text=True, timeout=120)
        assert process.poll() is None, "the first run ended before the second driver came"
        assert second.returncode == 2 and "is in use by process" in second.stderr, second.stdout + second.stderr

    # The function strikes by itself; its role plants nothing.
    faults = [Fault(name, "reward function", "") for name in NAMES]
    ended = run_with(faults, path, run, meanwhile=start_a_second_driver)
    assert ended.code == 0, ended.output
    for name in NAMES:
        assert REASONS[name] in ended.after(name, "reward")[0]["text"]
        report(ended, name, detected="reward", recovered="reward")
    assert sum(row.get("score/failed", 0.0) for row in rows(run)) == 3 + 4, "three samples, and a whole group"
    assert_balanced(run, trained=4 * STEPS - 1, dropped=1)
