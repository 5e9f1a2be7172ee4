"""Reward functions in their own process: whatever one does, it costs its sample a score and nothing else."""

import math
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from actors.rewards import RewardSpec
from actors.rewards.runner import RewardError, RewardRunner

FUNCTIONS = '''
import asyncio, ctypes, os, re, subprocess, sys, time
from actors.rewards import batched

def behave(prompt, response, data):
    """Does what the response says; its length otherwise."""
    if response == "hang": time.sleep(60)
    if response == "gil": re.match(r"(a+)+$", "a" * 60 + "b")
    if response == "exit": os._exit(3)
    if response == "sysexit": sys.exit(1)
    if response == "crash": ctypes.string_at(0)
    if response == "raise": raise ValueError("boom")
    if response == "nan": return float("nan")
    if response == "none": return None
    if response == "memory": return len(bytearray(800 << 20))
    if response == "print": print("text on stdout"); os.write(1, b"more")
    if response == "child": subprocess.Popen(["sleep", "60"]); time.sleep(60)
    return len(response)

async def behave_async(prompt, response, data):
    if response == "slow": await asyncio.sleep(60)
    if response == "block": time.sleep(60)
    if response == "exit": os._exit(3)
    if response == "raise": raise ValueError("boom")
    await asyncio.sleep(0.2)
    return len(response)

@batched
def lengths(prompts, responses, data, scale=1.0):
    if "hang" in responses: time.sleep(60)
    if "short" in responses: return [1.0]
    return [float("nan") if r == "nan" else scale * len(r) for r in responses]

def unmarked(prompts, responses, data):
    return [len(responses)] * len(responses)

@batched
async def lengths_async(prompts, responses, data):
    await asyncio.sleep(60 if "slow" in responses else 0)
    return [len(r) for r in responses]

def no_pid(prompt, response, data):
    return os.getpid()

def wrong_arguments(response):
    return 0
'''


@pytest.fixture
def functions(tmp_path) -> str:
    path = tmp_path / "functions.py"
    path.write_text(FUNCTIONS)
    return str(path)


def run(specs, responses, **options):
    with RewardRunner(specs, **options) as runner:
        return score(runner, responses), runner.restarts


def score(runner, responses):
    count = len(responses)
    return runner.score(["p"] * count, responses, [{"answer": "7"}] * count)


def gone(pid: int) -> bool:
    """True once the process has ended (a zombie that its new parent has not collected counts)."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        stat = Path(f"/proc/{pid}/stat")
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.02)
    return False


def test_weighted_sum_of_built_in_functions_and_each_part():
    specs = [
        RewardSpec("right", "last_number", weight=2.0),
        RewardSpec("tone", "sentiment", weight=0.5),
        RewardSpec("logged", "exact_match", weight=0.0),
    ]
    scores, restarts = run(specs, ["it is 7", "I love 8", "7"])
    assert scores.parts["right"].tolist() == [1.0, 0.0, 1.0]
    assert scores.parts["logged"].tolist() == [0.0, 0.0, 1.0]
    np.testing.assert_allclose(scores.values, [2.0, 0.5 * 0.6369, 2.0])
    assert scores.errors == {} and restarts == 0


def test_functions_run_in_another_process(functions):
    scores, _ = run([RewardSpec("pid", f"{functions}:no_pid")], ["r"])
    assert scores.values[0] != os.getpid()


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        ("raise", "ValueError: boom (functions.py:12)"),
        ("nan", "returned nan"),
        ("none", "returned None, not a number"),
        ("sysexit", "SystemExit: 1"),
        ("exit", "its process exited with code 3"),
        ("crash", "its process was ended by SIGSEGV"),
        ("hang", "took longer than 0.5 s and was killed"),
        ("gil", "took longer than 0.5 s and was killed"),
    ],
)
def test_a_poisoned_sample_costs_only_its_own_score(functions, response, reason):
    spec = RewardSpec("len", f"{functions}:behave", timeout_s=0.5)
    scores, _ = run([spec], ["a", response, "bb"])
    np.testing.assert_array_equal(scores.values, [1, math.nan, 2])
    assert list(scores.errors) == [1]
    assert scores.errors[1].startswith(f"reward 'len' ({functions}:behave), sample 1: {reason}")


def test_two_poisoned_samples_and_the_rest_of_the_batch_survives(functions):
    spec = RewardSpec("len", f"{functions}:behave", timeout_s=0.5)
    scores, restarts = run([spec], ["exit", "a", "hang", "bb", "exit"])
    np.testing.assert_array_equal(scores.values, [math.nan, 1, math.nan, 2, math.nan])
    assert restarts == 2  # the last death is repaired when the next batch comes


def test_a_function_that_always_hangs_is_given_up_after_max_restarts(functions):
    spec = RewardSpec("len", f"{functions}:behave", timeout_s=0.3)
    begin = time.monotonic()
    scores, _ = run([spec, RewardSpec("right", "last_number")], ["hang"] * 50, max_restarts=3)
    assert time.monotonic() - begin < 5
    assert np.isnan(scores.values).all() and (scores.parts["right"] == 0).all()
    assert "took longer" in scores.errors[2] and "not tried" in scores.errors[3]


def test_a_failed_part_of_weight_zero_costs_no_score(functions):
    specs = [RewardSpec("logged", f"{functions}:behave", weight=0.0), RewardSpec("right", "last_number")]
    scores, _ = run(specs, ["raise", "7"])
    assert scores.values.tolist() == [0.0, 1.0]
    np.testing.assert_array_equal(scores.parts["logged"], [math.nan, 1])
    assert scores.errors == {}


def test_what_a_function_prints_does_not_disturb_the_scores(functions):
    scores, restarts = run([RewardSpec("len", f"{functions}:behave")], ["print", "a"])
    assert scores.values.tolist() == [5, 1] and restarts == 0


def test_a_function_that_takes_too_much_memory_loses_its_sample_only(functions):
    spec = RewardSpec("len", f"{functions}:behave")
    scores, _ = run([spec], ["a", "memory", "bb"], memory_limit_bytes=600 << 20)
    np.testing.assert_array_equal(scores.values, [1, math.nan, 2])
    assert "MemoryError" in scores.errors[1]


def test_async_functions_are_awaited_side_by_side_each_with_its_own_timeout(functions):
    spec = RewardSpec("a", f"{functions}:behave_async", timeout_s=1.0)
    begin = time.monotonic()
    scores, restarts = run([spec], ["slow", "raise", *(["aa"] * 60)])
    assert time.monotonic() - begin < 6  # one after another the 60 calls of 0.2 s would take 12 s
    np.testing.assert_array_equal(scores.values, [math.nan, math.nan, *([2.0] * 60)])
    assert "took longer than 1 s" in scores.errors[0] and "boom" in scores.errors[1]
    assert restarts == 0


@pytest.mark.parametrize("poison", ["block", "exit"])
def test_an_async_call_that_stops_the_loop_costs_only_its_own_score(functions, poison):
    spec = RewardSpec("a", f"{functions}:behave_async", timeout_s=0.5)
    scores, _ = run([spec], ["a", poison, "bb"])
    np.testing.assert_array_equal(scores.values, [1, math.nan, 2])


def test_batched_functions_get_lists_by_mark_or_by_config(functions):
    specs = [
        RewardSpec("marked", f"{functions}:lengths", args={"scale": 10.0}),
        RewardSpec("config", f"{functions}:unmarked", batched=True),
        RewardSpec("asynchronous", f"{functions}:lengths_async"),
    ]
    scores, _ = run(specs, ["a", "nan", "ccc"])
    np.testing.assert_array_equal(scores.parts["marked"], [10, math.nan, 30])
    assert scores.parts["config"].tolist() == [3, 3, 3]
    assert scores.parts["asynchronous"].tolist() == [1, 3, 3]
    assert list(scores.errors) == [1]


@pytest.mark.parametrize(
    ("function", "response", "reason"),
    [
        ("lengths", "short", "the batch of 2 failed: ValueError: returned 1 scores for 2 samples"),
        ("lengths", "hang", "the batch of 2 failed: took longer than 0.5 s and was killed"),
        ("lengths_async", "slow", "the batch of 2 failed: TimeoutError: took longer than 0.5 s"),
    ],
)
def test_a_failed_batch_leaves_its_samples_without_a_score_and_the_next_batch_works(
    functions, function, response, reason
):
    with RewardRunner([RewardSpec("b", f"{functions}:{function}", timeout_s=0.5)]) as runner:
        failed = score(runner, ["a", response])
        assert np.isnan(failed.values).all() and list(failed.errors) == [0, 1]
        assert reason in failed.errors[1]
        assert score(runner, ["a", "bb"]).values.tolist() == [1, 2]


def test_functions_that_cannot_be_used_are_named_all_at_once(functions):
    specs = [
        RewardSpec("a", "no.such.module:f"),
        RewardSpec("b", f"{functions}:missing"),
        RewardSpec("c", f"{functions}:wrong_arguments"),
        RewardSpec("d", "length_penalty"),
        RewardSpec("fine", "exact_match"),
    ]
    with pytest.raises(RewardError) as caught:
        RewardRunner(specs)
    lines = str(caught.value).splitlines()
    assert lines[0] == "4 reward functions cannot be used:"
    assert "No module named 'no'" in lines[1] and "no function 'missing'" in lines[2]
    assert "cannot be called as fn(prompt, response, data)" in lines[3] and "max_tokens" in lines[4]


def test_a_file_that_hangs_on_import_is_an_error_within_the_start_timeout(tmp_path):
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(60)\ndef f(p, r, d): return 1\n")
    with pytest.raises(RewardError, match=r"slow\.py:f: took longer than 0.5 s"):
        RewardRunner([RewardSpec("slow", "slow.py:f")], base=tmp_path, start_timeout_s=0.5)


def test_close_leaves_no_process_nor_what_a_function_started(functions):
    runner = RewardRunner([RewardSpec("len", f"{functions}:behave", timeout_s=0.5)])
    pid = runner.pid
    score(runner, ["child"])  # hangs beside a child of its own; both are killed
    assert gone(pid)
    assert all(gone(int(p.name)) for p in Path("/proc").iterdir() if p.name.isdigit() and _group(p) == pid)
    second = runner.score(["p"], ["a"], [{}]) and runner.pid
    runner.close()
    runner.close()
    assert gone(second) and runner.pid is None


def _group(process: Path) -> int | None:
    """The process group of a live process, None when it ended while this looked."""
    try:
        fields = (process / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else int(fields[2])


@pytest.mark.parametrize("response", ["a", "hang", "gil"])
def test_the_process_ends_with_its_parent_also_while_a_function_runs(functions, response):
    code = f"""
        from actors.rewards import RewardSpec
        from actors.rewards.runner import RewardRunner
        import time
        runner = RewardRunner([RewardSpec("len", "{functions}:behave", timeout_s=60)])
        print(runner.pid, flush=True)
        runner.score(["p"], ["{response}"], [{{}}])
        print("scored", flush=True)
        time.sleep(60)
    """
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
    try:
        pid = int(parent.stdout.readline())
        if response == "a":
            assert parent.stdout.readline() == "scored\n"
        else:
            time.sleep(0.3)
        assert Path(f"/proc/{pid}").exists()
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
    assert gone(pid)


def test_a_process_killed_between_two_batches_costs_no_sample(functions):
    with RewardRunner([RewardSpec("len", f"{functions}:behave")]) as runner:
        score(runner, ["a"])
        os.kill(runner.pid, 9)
        assert gone(runner.pid)
        assert score(runner, ["a", "bb"]).values.tolist() == [1, 2]
        assert runner.restarts == 1


def test_an_interrupt_does_not_leave_replies_for_the_next_batch(functions, monkeypatch):
    with RewardRunner([RewardSpec("len", f"{functions}:behave")]) as runner:

        def interrupted(self, timeout_s):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(type(runner._process), "receive", interrupted)
            with pytest.raises(KeyboardInterrupt):
                score(runner, ["a", "bb"])
        assert score(runner, ["ccc", "dddd"]).values.tolist() == [3, 4]


def test_a_large_batch_passes_the_pipes_both_ways(functions):
    responses = ["x" * 2000] * 3000  # 6 MB in, 3,000 frames out
    scores, _ = run([RewardSpec("len", f"{functions}:behave", timeout_s=20)], responses)
    assert (scores.values == 2000).all()
