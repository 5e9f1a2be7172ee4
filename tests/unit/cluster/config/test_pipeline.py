"""A pipeline file: what merges, what a stage may refer to, where overrides go, and every problem at once."""

import copy
from pathlib import Path

import pytest
import yaml

from cluster.config import Config, ConfigError, Pipeline, load_config, load_run
from cluster.config.loading.pipeline import merge, pipeline_of, references, with_models

TREE = {
    "name": "rlhf",
    "defaults": {
        "model": {"path": "models/base", "max_length": 64},
        "data": {"reasoning_gym": {"task": "chain_sum", "size": 100}},
        "learner": {"optimizer": {"lr": 1e-5, "warmup_steps": 2}},
    },
    "stages": [
        {"name": "sft", "steps": 30, "algorithm": "sft"},
        {"name": "judge", "steps": 60, "algorithm": "reward_model", "model": {"path": "stage:sft"}},
        {
            "name": "ppo",
            "steps": 20,
            "algorithm": "ppo",
            "model": {"path": "stage:sft"},
            "critic": {"path": "stage:judge"},
            "reward": {
                "models": {"rm": {"path": "stage:judge"}},
                "functions": {"rule": {"function": "exact_match", "weight": 0.0}},
            },
            "rollout": {"sampling": {"max_tokens": 16}},
            "learner": {"optimizer": {"lr": 1e-6}},
        },
    ],
}


def given(*overrides, **changes) -> Pipeline:
    """TREE with changes to its stages, `judge={...}`, merged in."""
    tree = copy.deepcopy(TREE)
    tree["stages"] = [merge(stage, changes.get(stage["name"], {})) for stage in tree["stages"]]
    return pipeline_of(tree, "file.yaml", overrides)


def problems(*overrides, **changes) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        given(*overrides, **changes)
    return [str(problem) for problem in raised.value.problems]


def test_defaults_lie_under_every_stage_and_a_stages_own_keys_win():
    sft, _, ppo = (stage.config for stage in given().stages)
    assert (sft.learner.optimizer.lr, ppo.learner.optimizer.lr) == (1e-5, 1e-6)
    assert ppo.learner.optimizer.warmup_steps == 2, "the section merges, it is not replaced"
    assert (sft.model.path, ppo.model.path) == ("models/base", "stage:sft")
    assert {stage.config.model.max_length for stage in given().stages} == {64}
    assert (sft.name, ppo.name) == ("rlhf.sft", "rlhf.ppo")


def test_null_takes_a_section_of_the_defaults_away_so_that_another_source_of_data_can_stand_there():
    pipeline = given(judge={"data": {"path": "pairs.jsonl", "reasoning_gym": None}})
    data = pipeline.stage("judge").config.data
    assert (data.path, data.reasoning_gym) == ("pairs.jsonl", None)
    assert pipeline.stage("sft").config.data.reasoning_gym.task == "chain_sum"
    assert merge({"clip": 0.2}, {"clip": None}) == {"clip": None}, "null over a value is a value"


def test_an_override_goes_to_one_stage_by_its_name_and_to_the_defaults_without():
    pipeline = given(
        "stages.ppo.steps=7", "model.max_length=48", "name=mine", "stages.sft.algorithm.sft.rows_per_step=4"
    )
    assert [stage.config.steps for stage in pipeline.stages] == [30, 60, 7]
    assert {stage.config.model.max_length for stage in pipeline.stages} == {48}
    assert pipeline.name == "mine"
    assert pipeline.stage("sft").config.algorithm.sft.rows_per_step == 4


def test_an_override_that_nobody_would_hear_is_refused():
    assert problems("steps=3", "stages.pppo.steps=3", "stages.ppo=3", "name=5") == [
        "steps=3: every stage sets steps itself; write stages.NAME.steps=value (sft, judge, ppo)",
        "stages.pppo.steps=3: there is no stage pppo; did you mean ppo?",
        "stages.ppo=3: an override of a stage is written stages.NAME.key.path=value",
        "name: must be text, got 5",
    ]


def test_problems_of_all_stages_come_at_once_each_under_its_stage():
    assert problems(
        "stages.judge.learner.backend=tensor",
        sft={"steps": 0},
        judge={"learner": {"zerro": {}}},
        ppo={"rollout": {"sampling": {"max_tokens": 64}}, "model": {"path": "stage:sftt"}},
    ) == [
        "sft: steps: must be greater than or equal to 1, got 0",
        "judge: learner.backend: must be deepspeed or torch, got 'tensor'",
        "judge: learner.zerro: unknown key; did you mean learner.zero?",
        "ppo: rollout.sampling.max_tokens: leaves no room for a prompt in model.max_length (64), got 64",
        "ppo: model.path: there is no stage sftt; did you mean sft?",
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"sft": {"model": {"path": "stage:ppo"}}},
            "sft: model.path: must be a stage that comes before this one (this is the first), got stage:ppo",
        ),
        (
            {"judge": {"model": {"path": "stage:judge"}}},
            "judge: model.path: must be a stage that comes before this one (those before are sft), got stage:judge",
        ),
        (
            {"ppo": {"reward": {"models": {"rm": {"path": "stage:sft"}}}}},
            "ppo: reward.models.rm.path: the stage sft trains a policy by sft, no reward model",
        ),
        (
            {"ppo": {"model": {"path": "stage:judge"}}},
            "ppo: model.path: the stage judge trains a reward model, which ppo cannot tune",
        ),
        (
            {"sft": {"data": {"path": "stage:judge", "reasoning_gym": None}}},
            "sft: data.path: a stage exports a model and no data, got stage:judge",
        ),
    ],
)
def test_a_reference_must_lead_to_an_earlier_model_of_the_right_kind(changes, said):
    assert problems(**changes) == [said]


def test_a_stage_that_exports_nothing_cannot_be_referred_to_by_any_key():
    assert problems(judge={"checkpoint": {"export": False}}) == [
        f"ppo: {key}: the stage judge exports nothing (its checkpoint.export is false); set that to true"
        for key in ("critic.path", "reward.models.rm.path")
    ]


def test_stages_need_names_of_their_own():
    tree = copy.deepcopy(TREE)
    tree["stages"][0]["name"], tree["stages"][1]["name"] = "a.b", "ppo"
    tree["stages"].append({"algorithm": "sft"})
    with pytest.raises(ConfigError) as raised:
        pipeline_of(tree, "file.yaml")
    assert [str(problem) for problem in raised.value.problems] == [
        "stages[0].name: must be letters, digits, _ and -, got 'a.b'",
        "stages[2].name: two stages are named ppo; rename one",
        "stages[3].name: is required: later stages and overrides call the stage by it",
    ]


def test_the_example_in_the_docs_is_a_pipeline():
    page = (Path(__file__).resolve().parents[4] / "docs" / "use" / "pipelines.md").read_text()
    example = page.split("```yaml\n")[1].split("```")[0]
    pipeline = pipeline_of(yaml.safe_load(example), "pipelines.md")
    assert [stage.name for stage in pipeline.stages] == ["sft", "judge", "ppo"]


def test_the_file_itself_has_three_keys():
    with pytest.raises(ConfigError, match="default: unknown key; did you mean defaults"):
        pipeline_of({**copy.deepcopy(TREE), "default": {}}, "file.yaml")
    with pytest.raises(ConfigError, match="stages: list should have at least 1 item"):
        pipeline_of({"name": "empty", "stages": []}, "file.yaml")


def test_the_model_of_a_chain_is_the_one_it_starts_from():
    pipeline = given()
    assert pipeline.base("stage:judge") == "models/base"
    assert pipeline.base("models/other") == "models/other"
    ppo = pipeline.stage("ppo").config
    assert references(ppo) == {"model.path": "sft", "critic.path": "judge", "reward.models.rm.path": "judge"}
    found = with_models(ppo, lambda path: path.replace("stage:", "/exports/"))
    assert references(found) == {}
    assert (found.model.path, found.critic.path) == ("/exports/sft", "/exports/judge")
    assert found.reward.models["rm"].path == "/exports/judge"
    assert ppo.model.path == "stage:sft", "the pipeline itself keeps its references"


def test_the_resolved_pipeline_is_a_pipeline_file_again(tmp_path):
    path = tmp_path / "pipeline.yaml"
    path.write_text(yaml.safe_dump(given().dump(), sort_keys=False))
    assert load_run(path) == given()


def test_the_key_stages_tells_a_pipeline_from_a_run_and_a_command_for_runs_says_so(tmp_path):
    path = tmp_path / "file.yaml"
    path.write_text(yaml.safe_dump(TREE))
    assert isinstance(load_run(path), Pipeline)
    with pytest.raises(ConfigError, match="stages: a pipeline is run by `raylign train`"):
        load_config(path)
    path.write_text("name: one\nalgorithm: dpo\nmodel: {path: m}\ndata: {path: d}\n")
    assert isinstance(load_run(path), Config)


def test_a_stage_s_model_may_be_a_cost_or_a_judge_of_the_right_kind():
    reward = {
        "models": {"rm": {"path": "stage:judge"}},
        "safety": {"models": {"cost": {"path": "stage:judge"}}},
        "judges": {"better": {"path": "stage:sft"}},
    }
    many = {"sampling": {"samples_per_prompt": 2, "max_tokens": 16}}
    found = with_models(given(ppo={"reward": reward, "rollout": many}).stage("ppo").config, str.upper).reward
    assert found.safety.models["cost"].path == "STAGE:JUDGE" and found.judges["better"].path == "STAGE:SFT"
    wrong = {
        **reward,
        "judges": {"better": {"path": "stage:judge"}},
        "safety": {"models": {"c": {"path": "stage:sft"}}},
    }
    assert problems(ppo={"reward": wrong, "rollout": many}) == [
        "ppo: reward.safety.models.c.path: the stage sft trains a policy by sft, no reward model",
        "ppo: reward.judges.better.path: the stage judge trains a reward model, a judge answers in text",
    ]
