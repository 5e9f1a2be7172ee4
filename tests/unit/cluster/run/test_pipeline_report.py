"""A pipeline's page: every stage in one file, and the reward model's score beside the rule's."""

import json
import re

import pytest
from typer.testing import CliRunner

from cluster.cli import _app
from cluster.run.checkpoints.state import DriverState
from cluster.run.directory import RunDirectory
from cluster.run.records.evaluation import difference_interval
from cluster.run.records.metrics import Interval, MetricsWriter, eval_metrics
from cluster.run.report.data import Result
from cluster.run.report.pipeline import PLOTLY_GOES_HERE, write_pipeline_report
from cluster.run.report.stage import Part, flat, paired_gains, shared, verdict
from cluster.run.stages import Finished, PipelineDirectory
from tests.fixtures.fake_run import make_fake_run
from tests.unit.cluster.config.test_pipeline import given


def part(name: str, kind: str, low: float, high: float, weight: float = 1.0) -> Part:
    flat_, gain = Interval(0.0, 0.0, 0.0), Interval((low + high) / 2, low, high)
    return Part(name, kind, weight, Result(name, flat_, flat_, flat_, gain, True, (0, 1, 1)))


RISEN = part("rm", "reward model", 0.1, 0.3)


@pytest.mark.parametrize(
    ("rule", "settled", "words"),
    [
        (part("rule", "rule", 0.1, 0.2, 0.0), "good", "rm rose, and so did rule"),
        (part("rule", "rule", -0.3, -0.1, 0.0), "bad", "rm rose while rule fell: the reward model is being gamed"),
        (part("rule", "rule", -0.1, 0.1, 0.0), "open", "rule did not follow for sure"),
    ],
)
def test_the_verdict_compares_the_judge_with_the_rule(rule, settled, words):
    found = verdict([RISEN, rule])
    assert found[0] == settled
    assert words in found[1]


def test_there_is_no_verdict_without_both_and_none_on_a_judge_that_did_not_rise():
    assert verdict([RISEN]) is None
    assert verdict([part("rule", "rule", 0.1, 0.2)]) is None
    assert verdict([part("rm", "reward model", -0.1, 0.2), part("rule", "rule", -0.3, -0.1)])[0] == "open"


def test_settings_are_told_by_their_path_and_those_alike_once():
    one, two = {"a": 1, "b": {"c": 2, "d": None}}, {"a": 1, "b": {"c": 3}}
    assert flat(one) == {"a": "1", "b.c": "2"}
    assert shared([one, two]) == {"a": "1"}


def test_the_gain_of_every_evaluation_is_paired_when_the_last_step_is_committed(tmp_path):
    run = RunDirectory.create(tmp_path)
    commit = run.checkpoint(4)
    commit.mkdir(parents=True)
    (commit / "manifest.json").write_text("{}")
    before, after = [0.0, 1.0, 2.0], [1.0, 2.5, 2.5]
    DriverState(step=4, baseline={"rm": before}, scores={"rm": after}).save(commit)
    assert paired_gains(run, [{"step": 4}]) == {"rm": difference_interval(after, before)}
    assert paired_gains(run, [{"step": 5}]) == {}, "the commit is of another evaluation"


@pytest.fixture
def directory(tmp_path):
    """SFT done, the reward model done, PPO begun: its judge rose while the rule fell."""
    found, pipeline = PipelineDirectory.create(tmp_path / "run"), given()
    found.write(pipeline)
    for number, name in ((1, "sft"), (2, "judge")):
        make_fake_run(found.stage(number, name).root, "dpo", 10, name=f"rlhf.{name}")
        model = f"{number:02d}-{name}/policy/step-10"
        (found.root / model).mkdir(parents=True)
        (found.root / model / "config.json").write_text("{}")
        found.record(Finished(name, f"{number:02d}-{name}", model, "best evaluation", "finished"))
    run = RunDirectory.create(found.stage(3, "ppo").root)
    run.write_config(pipeline.stage("ppo").config)
    writer = MetricsWriter(run)
    for step in range(5):
        rm, rule = 0.2 * step, 0.8 - 0.1 * step
        evals = (
            {}
            if step % 2
            else eval_metrics("rm", Interval(rm, rm - 0.1, rm + 0.1))
            | eval_metrics("rule", Interval(rule, rule - 0.05, rule + 0.05))
        )
        writer.write(step, {"reward/mean": rm, "reward/rm": rm, "reward/rule": rule, "time/step_s": 1.0, **evals})
    writer.close()
    return found


def embedded(html: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)[1])


def test_one_page_holds_every_stage_and_each_ones_full_page_without_a_second_plotly(directory):
    html = write_pipeline_report(directory).read_text()
    stages = embedded(html)["stages"]
    assert [stage["name"] for stage in stages] == ["sft", "judge", "ppo"]
    assert all(stage["page"].count(PLOTLY_GOES_HERE) == 1 for stage in stages)
    assert all(f"<title>rlhf.{stage['name']}" in stage["page"] for stage in stages)
    assert len(html) < 8_000_000, "plotly once is 5 MB"
    assert "Hands on 01-sft/policy/step-10 (best evaluation)" in html
    assert "default-src &#39;none&#39;" in html or "default-src 'none'" in html
    assert "http://" not in re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL)


def test_ppo_against_a_judge_shows_both_scores_and_says_that_it_is_gamed(directory):
    html = write_pipeline_report(directory).read_text()
    ppo = embedded(html)["stages"][2]
    assert [(p["name"], p["weight"]) for p in ppo["parts"]] == [("rm", 1.0), ("rule", 0.0)]
    assert ppo["series"]["columns"]["reward/rm"][-1] == pytest.approx(0.8)
    assert ppo["series"]["columns"]["reward/rule"][-1] == pytest.approx(0.4)
    assert "rm rose while rule fell: the reward model is being gamed" in html


def test_the_page_is_written_before_the_first_stage_and_says_what_waits(tmp_path):
    empty = PipelineDirectory.create(tmp_path / "run")
    empty.write(given())
    html = write_pipeline_report(empty).read_text()
    assert html.count("Not begun.") == 3
    assert [stage["page"] for stage in embedded(html)["stages"]] == [None, None, None]


def test_the_report_command_knows_a_pipeline_by_its_file(directory):
    done = CliRunner().invoke(_app(), ["report", str(directory.root)])
    assert done.exit_code == 0, done.output
    assert done.output.strip() == f"report: {directory.report_file}"
    assert 'id="stage-judge"' in directory.report_file.read_text()
