"""Running stages: what is handed on, what a resume skips and refuses, and what a failure says."""

import json
from pathlib import Path

import pytest

from cluster.commands.eval import evaluate
from cluster.commands.status import run_lines
from cluster.errors import LearnerLost, RunFailed, StepLost, UserError
from cluster.pipeline import run_pipeline
from cluster.run.checkpoints.policies import exported_policy
from cluster.run.stages import PipelineDirectory
from cluster.training.ending import Outcome
from serve.policy import ServeInputError, find_policy
from tests.fixtures.fake_run import make_fake_run
from tests.unit.cluster.config.test_pipeline import given

AGAIN = "raylign train FILE --run-dir DIR --resume"


class Runs:
    """Stands in for the driver: leaves a run directory with exports of step 2 and step 3, and remembers the calls."""

    def __init__(self, fails: str | None = None, error: BaseException | None = None, best: int | None = 2) -> None:
        self.calls: list[tuple[str, str, bool]] = []
        self.fails, self.error, self.best = fails, error, best

    def __call__(self, config, directory, resume):
        self.calls.append((config.name, config.model.path, resume))
        self.last = config
        directory.write_config(config)
        if config.name == self.fails:
            raise self.error
        for step in (2, 3):
            directory.policy(step).mkdir(parents=True, exist_ok=True)
            (directory.policy(step) / "config.json").write_text("{}")
        best = directory.policy(self.best) if self.best else None
        return Outcome(directory.report_file, directory.policy(3), best, "finished")


def go(directory: PipelineDirectory, runs: Runs, pipeline=None) -> list[str]:
    said: list[str] = []
    run_pipeline(pipeline or given(), directory, again=AGAIN, say=said.append, run_stage=runs)
    return said


def record(directory: PipelineDirectory) -> list[dict]:
    return json.loads(directory.record_file.read_text())["finished"]


@pytest.fixture
def directory(tmp_path: Path) -> PipelineDirectory:
    return PipelineDirectory.create(tmp_path / "run")


def test_each_stage_starts_from_the_best_export_of_the_former(directory):
    runs = Runs()
    go(directory, runs)
    best = f"{directory.root}/01-sft/policy/step-2"
    assert runs.calls == [
        ("rlhf.sft", "models/base", False),
        ("rlhf.judge", best, False),
        ("rlhf.ppo", best, False),
    ]
    judged = f"{directory.root}/02-judge/policy/step-2"
    assert (runs.last.reward.models["rm"].path, runs.last.critic.path) == (judged, judged)
    assert record(directory)[0] == {
        "stage": "sft",
        "directory": "01-sft",
        "model": "01-sft/policy/step-2",
        "why": "best evaluation",
        "reason": "finished",
    }


def test_without_an_evaluation_better_than_the_start_the_last_export_is_handed_on(directory):
    go(directory, Runs(best=None))
    first = record(directory)[0]
    assert (first["model"], first["why"]) == ("01-sft/policy/step-3", "last step")


def test_a_failed_stage_leaves_a_record_of_those_before_and_says_how_to_go_on(directory):
    with pytest.raises(RunFailed, match=r"^stage judge: the disk is full$"):
        go(directory, Runs("rlhf.judge", RunFailed("the disk is full")))
    assert [row["stage"] for row in record(directory)] == ["sft"]
    with pytest.raises(UserError, match=f"^stage judge: bad rows\nonce that is mended: {AGAIN}$"):
        go(directory, Runs("rlhf.judge", UserError("bad rows")))
    with pytest.raises(StepLost, match=r"^stage judge: rank 1 died$"):  # who runs the driver starts it again
        go(directory, Runs("rlhf.judge", LearnerLost("rank 1 died")))
    with pytest.raises(KeyError) as raised:
        go(directory, Runs("rlhf.judge", KeyError("a bug")))
    assert raised.value.__notes__ == [f"stage judge of the pipeline failed; resume with: {AGAIN}"]


def test_a_resume_skips_what_is_done_resumes_what_began_and_starts_what_did_not(directory):
    with pytest.raises(KeyboardInterrupt):
        go(directory, Runs("rlhf.judge", KeyboardInterrupt()))
    runs = Runs()
    said = go(PipelineDirectory.attach(directory.root), runs)
    assert [(name, resume) for name, _, resume in runs.calls] == [("rlhf.judge", True), ("rlhf.ppo", False)]
    assert said[0] == "stage 1 of 3, sft: done before, 01-sft/policy/step-2"
    nothing = Runs()
    go(directory, nothing)
    assert nothing.calls == []


def test_a_resume_may_move_the_end_of_a_stage_that_is_not_done_and_nothing_of_one_that_is(directory):
    with pytest.raises(KeyboardInterrupt):
        go(directory, Runs("rlhf.judge", KeyboardInterrupt()))
    directory.refuse_other(given("stages.ppo.steps=50", "ray.num_cpus=3"))
    for other, named in (
        (given("stages.sft.steps=50"), "sft: steps"),
        (given("stages.ppo.seed=1"), "ppo: seed"),
        (given("stages.ppo.learner.optimizer.lr=0.5"), "ppo: learner.optimizer.lr"),
        (given("name=other"), "name"),
    ):
        with pytest.raises(UserError, match=f"was started with another pipeline \\({named}\\); give that one, or"):
            directory.refuse_other(other)
    shorter = given().model_copy(update={"stages": given().stages[:2]})
    with pytest.raises(UserError, match="another pipeline \\(the list of stages\\)"):
        directory.refuse_other(shorter)


def test_a_model_that_is_gone_is_missed_before_the_next_stage_starts(directory):
    with pytest.raises(KeyboardInterrupt):
        go(directory, Runs("rlhf.judge", KeyboardInterrupt()))
    (directory.root / "01-sft/policy/step-2/config.json").unlink()
    runs = Runs()
    with pytest.raises(
        UserError, match=r"the stage sft is done, but its model .*/01-sft/policy/step-2 is gone; restore"
    ):
        go(directory, runs)
    assert runs.calls == []


def test_status_and_chat_take_a_pipeline_s_directory_and_serve_names_its_stages(directory):
    with pytest.raises(KeyboardInterrupt):
        go(directory, Runs("rlhf.ppo", KeyboardInterrupt()))
    ppo = directory.stage(3, "ppo")
    ppo.metrics_file.write_text('{"step": 5, "time": 1.0, "reward/mean": 0.5}\n')
    assert run_lines(str(directory)) == [
        "sft: done (finished), 01-sft/policy/step-2",
        "judge: done (finished), 02-judge/policy/step-2",
        f"ppo: {ppo}: step 5 of 20",
        "  reward/mean  0.5",
    ]
    judge = directory.root / "02-judge/policy/step-2/config.json"
    judge.write_text('{"architectures": ["LlamaForSequenceClassification"]}')
    assert exported_policy(directory.root) == directory.root / "01-sft/policy/step-2", "a reward model answers nothing"
    with pytest.raises(ServeInputError, match="is a pipeline; give the directory of one of its stages: 01-sft, 02-ju"):
        find_policy(directory.root)
    with pytest.raises(UserError, match=r"is a pipeline; give the run directory of one of its stages: .*/03-ppo"):
        evaluate(directory.root)
    assert exported_policy("s3://bucket/run") is None and exported_policy(directory.root / "none") is None


def test_nothing_to_talk_to_before_a_stage_is_done(directory):
    with pytest.raises(KeyboardInterrupt):
        go(directory, Runs("rlhf.sft", KeyboardInterrupt()))
    assert run_lines(str(directory))[1:] == ["judge: waits", "ppo: waits"]
    with pytest.raises(UserError, match="has no exported policy yet; let a stage that trains one finish"):
        exported_policy(directory.root)


def test_a_directory_holds_one_pipeline_or_one_run(tmp_path, directory):
    go(directory, Runs())
    with pytest.raises(UserError, match="already holds a pipeline; add --resume"):
        PipelineDirectory.create(directory.root)
    with pytest.raises(UserError, match=r"holds no pipeline \(no pipeline.yaml in it\); start it without --resume"):
        PipelineDirectory.attach(tmp_path)
    make_fake_run(tmp_path / "one")
    with pytest.raises(UserError, match="already holds a run of its own"):
        PipelineDirectory.create(tmp_path / "one")
    with pytest.raises(UserError, match="must be a local or mounted path"):
        PipelineDirectory.create("s3://bucket/run")
