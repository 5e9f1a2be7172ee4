"""The report says what happened, carries its data safely, and opens without a network."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from cluster.run.directory import RunDirectory
from cluster.run.records.samples import SampleRecord, read_samples, write_samples
from cluster.run.report import write_report
from cluster.run.report.data import change_of, eval_names, result_of, series
from cluster.run.report.excerpt import excerpt, spread
from cluster.run.report.page import safe_json
from tests.fixtures.fake_run import fake_config, make_fake_run

SMALL = re.compile(r"<script>/\*\*.*?</script>", re.DOTALL)


def page(run: RunDirectory, **options) -> str:
    return write_report(run, **options).read_text()


def embedded(html: str) -> dict:
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert match
    return json.loads(match[1])


def evaluation(step: int, mean: float, low: float, high: float) -> dict:
    return {"step": step, "eval/reward": mean, "eval/reward_low": low, "eval/reward_high": high}


def test_gain_without_a_recorded_interval_adds_half_widths_as_squares():
    rows = [evaluation(0, 0.2, 0.16, 0.23), evaluation(5, 0.6, 0.5, 0.7), evaluation(10, 0.5, 0.46, 0.53)]
    result = result_of(rows, [], "reward")
    assert result is not None
    assert result.steps == (0, 10, 5)
    assert result.best.mean == 0.6
    assert result.gain.mean == pytest.approx(0.3)
    # down: after's lower 0.04 and before's upper 0.03 -> 0.05; up: after's upper 0.03 and before's lower 0.04 -> 0.05
    assert (result.gain.low, result.gain.high) == (pytest.approx(0.25), pytest.approx(0.35))
    assert not result.gain_is_paired


def test_gain_that_the_run_recorded_is_taken():
    rows = [evaluation(0, 0.2, 0.1, 0.3), evaluation(10, 0.5, 0.4, 0.6)]
    result = result_of(rows, [{"kind": "result", "gain": [0.3, 0.28, 0.32]}], "reward")
    assert result is not None
    assert result.gain_is_paired
    assert (result.gain.low, result.gain.high) == (0.28, 0.32)


def test_one_evaluation_is_no_result():
    assert result_of([evaluation(0, 0.2, 0.1, 0.3)], [], "reward") is None


def test_metric_named_low_is_an_evaluation_and_a_bound_is_not():
    assert eval_names([{"eval/reward": 1, "eval/reward_low": 0, "eval/reward_high": 2, "eval/is_low": 1}]) == [
        "eval/reward",
        "eval/is_low",
    ]


def test_change_compares_the_first_tenth_with_the_last():
    rows = [{"step": n, "reward/mean": float(n)} for n in range(20)]
    assert change_of(rows) == ("reward/mean", 0.5, 18.5)


def test_series_count_numbers_that_were_not_finite_but_not_those_that_were_not_measured():
    data = series([{"step": 1, "time": 1.0, "a": None, "b": 1.0}, {"step": 2, "time": 2.0, "a": 0.123456789}])
    assert data["not_finite"] == {"a": 1}
    assert data["columns"] == {"a": [None, 0.123457], "b": [1.0, None]}


def test_long_run_is_thinned_but_keeps_every_evaluation_and_the_last_step():
    rows = [{"step": n, "time": 0.0, "loss": 1.0, **({"eval/reward": 0.5} if n == 4001 else {})} for n in range(5000)]
    data = series(rows)
    assert data["every"] == 3
    assert {0, 3, 4001, 4999} <= set(data["steps"])
    assert 1 not in data["steps"]
    assert len(data["steps"]) <= 2000


def test_samples_are_whole_steps_spread_over_the_run_first_and_last_included():
    assert spread(list(range(0, 101)), 5) == [0, 25, 50, 75, 100]
    assert spread([3, 9], 5) == [3, 9]
    assert spread([3, 9], 1) == [9]
    assert spread([3, 9], 0) == []


def test_page_carries_at_most_the_samples_asked_for(tmp_path):
    run = make_fake_run(tmp_path, steps=8, sample_steps=8)  # 8 steps of 16 samples
    data = excerpt(run, max_samples=20)
    assert [len(step["rows"]) for step in data["steps"]] == [2] * 8
    assert data["steps"][0]["total"] == 16
    few_tokens = excerpt(run, max_samples=400, max_tokens=8 * 60)  # about 40 tokens a sample: one fits
    assert [len(step["rows"]) for step in few_tokens["steps"]] == [1] * 8
    assert excerpt(run, max_samples=0)["steps"] == []


def test_sample_in_the_page_is_the_sample_on_disk(tmp_path):
    run = make_fake_run(tmp_path, steps=4, sample_steps=1)
    record = read_samples(run.samples_file(4))[0]
    data = embedded(page(run))["samples"]
    row = data["steps"][0]["rows"][0]
    assert data["prompts"][row["prompt"]] == record.prompt
    assert row["tokens"] == list(record.tokens)
    assert row["logprobs"] == pytest.approx(list(record.logprobs), rel=1e-3)
    assert row["advantages"] == pytest.approx(list(record.advantages), rel=1e-3)
    assert row["token_kl"] == pytest.approx(list(record.token_kl), rel=1e-3)


def test_model_text_can_neither_end_the_script_nor_become_markup(tmp_path):
    evil = "</script><script>alert(1)</script><!-- \u2028 <img src=x onerror=alert(1)>"
    run = RunDirectory.create(tmp_path)
    run.write_config(fake_config(name="safe").model_copy(update={"seed": 1}))
    tree = run.read_config()
    tree["model"]["path"] = evil
    run.config_file.write_text(json.dumps(tree))
    run.metrics_file.write_text(json.dumps({"step": 1, "time": 1.0, evil: 2.0, "reward/mean": 1.0}) + "\n")
    run.events_file.write_text(json.dumps({"time": 1.0, "step": 1, "kind": evil, "text": evil}) + "\n")
    record = SampleRecord(1, 0, 0, 0, evil, evil, 1.0, {evil: 1.0}, evil, "stop", 0, 0.0, [evil], [0.0], [0.0], [0.0])
    write_samples(run.samples_file(1), [record])
    html = page(run)
    assert "<img src=x" not in html
    assert "alert(1)</script>" not in html
    assert html.count("</script>") == 3  # data, plotly, ours
    data = embedded(html)
    assert data["samples"]["steps"][0]["rows"][0]["response"] == evil
    assert data["events"][0]["text"] == evil


def test_embedded_json_escapes_what_html_would_read():
    assert safe_json({"a": "</script><!--&"}) == '{"a":"\\u003c/script\\u003e\\u003c!--\\u0026"}'
    with pytest.raises(ValueError, match="not JSON compliant"):
        safe_json(float("nan"))


def test_page_needs_nothing_from_outside(tmp_path):
    html = SMALL.sub("", page(make_fake_run(tmp_path, steps=3, sample_steps=1)))
    assert len(html) < 500_000  # plotly is out: what is left is ours
    assert re.findall(r"""(?:src|href)\s*=\s*["'](?!#)[^"']*""", html) == []
    assert "http://" not in html
    assert "https://" not in html
    assert "default-src 'none'" in html


def test_headline_shows_before_after_and_verdict(tmp_path):
    html = SMALL.sub("", page(make_fake_run(tmp_path, steps=30)))
    assert "better: the interval excludes zero" in html
    assert "reward on held-out prompts" in html
    assert "reasoning_gym: basic_arithmetic" in html


def test_preference_run_shows_its_accuracy_and_no_rollouts(tmp_path):
    html = SMALL.sub("", page(make_fake_run(tmp_path, method="dpo", steps=20, evaluations=False)))
    assert "preference/accuracy, first tenth of the run to the last" in html
    assert "<dt>rollouts</dt>" not in html
    assert embedded(html)["samples"]["steps"] == []


def test_run_of_one_step_without_evaluations_claims_no_change(tmp_path):
    html = SMALL.sub("", page(make_fake_run(tmp_path, steps=1, evaluations=False, sample_steps=1)))
    assert '<span class="arrow">' not in html
    assert "no two evaluations" in html


def test_run_without_a_step_says_so(tmp_path):
    run = RunDirectory.create(tmp_path)
    run.write_config(fake_config())
    assert "No step yet" in page(run)


def test_command_writes_the_page_and_names_it(tmp_path):
    import typer

    from cluster.commands.report import report

    app = typer.Typer()
    app.command()(report)
    make_fake_run(tmp_path / "run", steps=2)
    result = CliRunner().invoke(app, [str(tmp_path / "run"), "--samples", "4"])
    assert result.exit_code == 0
    assert result.output == f"report: {tmp_path / 'run' / 'report.html'}\n"
    assert (tmp_path / "run" / "report.html").stat().st_size > 4_000_000


def test_watching_imports_neither_torch_nor_ray_nor_vllm():
    modules = "cluster.run.records.metrics, cluster.run.records.trackers, cluster.run.records.console"
    modules += ", cluster.run.records.samples, cluster.run.report"
    found = "print([m for m in ('torch', 'ray', 'vllm') if m in sys.modules])"
    code = f"import sys, {modules}, cluster.commands.report; {found}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
