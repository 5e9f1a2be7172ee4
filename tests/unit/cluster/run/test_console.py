"""The console tells where the run stands, when it ends and what it gained; a fake clock and a string stand in."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from cluster.run.records.console import Console, Header, Summary
from cluster.run.records.metrics import Interval
from cluster.run.text import duration, number, sparkline


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def started(steps: int = 10, first_step: int = 0, live: bool = False) -> tuple[Console, Clock, io.StringIO]:
    clock, out = Clock(), io.StringIO()
    console = Console(out, clock, live=live)
    console.start(Header("demo", "ppo", "SmolLM2", "2 cores", steps, first_step))
    return console, clock, out


def summary(**changed) -> Summary:
    known = {
        "metric": "accuracy",
        "before": Interval(0.1, 0.06, 0.15),
        "after": Interval(0.4, 0.33, 0.47),
        "gain": Interval(0.3, 0.22, 0.38),
        "eval_prompts": 200,
        "best_step": 8,
        "report": Path("/runs/demo/report.html"),
        "model": Path("/runs/demo/policy/step-10"),
    }
    return Summary(**{**known, **changed})


def test_header_says_what_runs_where():
    assert started()[2].getvalue() == "demo  ppo · SmolLM2 · 2 cores · 10 steps\n"


def test_without_a_terminal_a_step_is_one_plain_line_with_an_eta():
    console, clock, out = started()
    clock.now = 6.0
    console.step(
        {
            "step": 1,
            "time": 0.0,
            "reward/mean": 0.25,
            "kl/ref": 1e-5,
            "eval/reward": 0.4,
            "eval/reward_low": 0.3,
            "eval/reward_high": 0.5,
        }
    )
    assert out.getvalue().splitlines()[-1] == (
        "step  1/10  reward/mean 0.25  kl/ref 1.0e-05  eval/reward 0.400 [0.300, 0.500]  6.0 s/step  ETA 54 s"
    )


def test_eta_is_the_median_step_time_so_that_one_slow_step_does_not_sway_it():
    console, clock, _ = started()
    for step, lasted in enumerate([2.0, 2.0, 100.0, 2.0, 2.0], start=1):
        clock.now += lasted
        console.step({"step": step})
    assert console.step_s == 2.0
    assert console.eta_s == 10.0  # five steps left


def test_evaluation_before_training_counts_as_no_step():
    console, clock, _ = started()
    clock.now = 50.0
    console.step({"step": 0, "eval/reward": 0.1})
    assert console.eta_s is None
    clock.now = 53.0
    console.step({"step": 1})
    assert console.eta_s == 27.0


def test_resumed_run_counts_only_the_steps_left():
    console, clock, out = started(first_step=6)
    clock.now = 5.0
    console.step({"step": 7})
    assert console.eta_s == 15.0
    assert "continues after step 6" in out.getvalue()


def test_metric_that_was_not_finite_is_a_dash():
    console, _, out = started()
    console.step({"step": 1, "kl/ref": None})
    assert "kl/ref –" in out.getvalue()  # noqa: RUF001


def test_brackets_in_text_are_shown_and_not_taken_for_markup():
    console, _, out = started()
    console.event("reward [bold]x[/bold] failed")
    console.phase("loading [engine]")
    assert "[bold]x[/bold] failed" in out.getvalue()
    assert "loading [engine]" in out.getvalue()


def test_terminal_shows_bar_values_and_trends():
    console, clock, out = started(live=True)
    for step in (1, 2, 3):
        clock.now += 4.0
        console.step(
            {
                "step": step,
                "reward/mean": 0.1 * step,
                "time/rollout_s": 2.5,
                "eval/reward": 0.2,
                "eval/reward_low": 0.1,
                "eval/reward_high": 0.3,
            }
        )
    console.close()
    console.close()
    text = out.getvalue()
    assert "step 3/10" in text
    assert "ETA 28 s" in text
    assert "▁▄█" in text  # 0.1, 0.2, 0.3
    assert "↑ +0.2" in text
    assert "0.200 [0.100, 0.300]" in text
    assert "rollout 2.5 s" in text


@pytest.mark.parametrize(
    ("gain", "verdict"),
    [
        (Interval(0.3, 0.22, 0.38), "+0.300 [+0.220, +0.380]  real: the interval excludes zero"),
        (Interval(0.01, -0.05, 0.07), "+0.010 [-0.050, +0.070]  not settled"),
        (Interval(-0.2, -0.3, -0.1), "-0.200 [-0.300, -0.100]  a loss"),
    ],
)
def test_summary_judges_the_gain_by_its_interval(gain, verdict):
    console, _, out = started()
    console.finish(summary(gain=gain))
    text = out.getvalue()
    assert verdict in text
    assert "accuracy 0.100 [0.060, 0.150]" in text
    assert "200 held-out prompts" in text
    assert "/runs/demo/report.html" in text
    assert "/runs/demo/policy/step-10" in text


def test_summary_without_evaluations_claims_nothing():
    console, _, out = started()
    console.finish(summary(before=None, after=None, gain=None, best_step=None, model=None, outcome="interrupted"))
    text = out.getvalue()
    assert "interrupted" in text
    assert "gain" not in text
    assert "report" in text


def test_console_says_when_it_was_not_started():
    with pytest.raises(RuntimeError, match="start"):
        Console(io.StringIO(), live=False).step({"step": 1})


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.41234, "0.4123"), (12345.6, "12,346"), (3e-5, "3.0e-05"), (7, "7"), (0.0, "0"), (float("nan"), "–")],  # noqa: RUF001
)
def test_numbers_have_four_digits(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(8.04, "8.0 s"), (59.7, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min"), (90_000, "1 d 1 h")],
)
def test_durations_read_as_spoken(seconds, text):
    assert duration(seconds) == text


def test_sparkline_averages_to_its_width_and_leaves_gaps():
    assert sparkline([0.0, 0.0, 7.0, 7.0], width=2) == "▁█"
    assert sparkline([0.0, None, 1.0]) == "▁ █"
    assert sparkline([5.0, 5.0]) == "▄▄"
    assert sparkline([]) == ""
