"""Config files and overrides: every problem at once, in one format, each with its path, rule, value and fix."""

import subprocess
import sys

import pytest
import yaml

from cluster.config import Config, ConfigError, load_config, parse_override
from tests.fixtures.configs import DPO, GRPO, PPO, config, problems


def test_all_problems_of_a_file_come_together_in_the_documented_format(tmp_path):
    path = tmp_path / "ppo.yaml"
    path.write_text(PPO + "learner: {zero: {stage: 4}}\n" + "weights: {bukket_mb: 1}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value) == (
        f"{path}: 2 problems\n"
        "  learner.zero.stage: must be 0, 1, 2 or 3, got 4\n"
        "  weights.bukket_mb: unknown key; did you mean weights.bucket_mb?"
    )


def test_one_problem_is_counted_in_the_singular(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(GRPO.replace("name: small", "name: a/b"))
    with pytest.raises(ConfigError, match=r"r\.yaml: 1 problem\n  name: "):
        load_config(path)


def test_problems_across_sections_come_together_too():
    found = problems(GRPO, "rollout.sampling.top_p=0.9", "evaluation.every_steps=5", "learner.minibatches=9")
    assert [line.partition(":")[0] for line in found] == [
        "rollout.sampling",
        "learner.minibatches",
        "evaluation.every_steps",
    ]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("rollout.enginees=torch", "rollout.enginees: unknown key; did you mean rollout.engine?"),
        ("critic.layer=3", "critic.layer: unknown key; did you mean critic.layers?"),
        (
            "reward.functions.correct.wight=2",
            "reward.functions.correct.wight: unknown key; did you mean reward.functions.correct.weight?",
        ),
        ("model.dtype=float16", "model.dtype: must be bfloat16 or float32, got 'float16'"),
        ("steps=0", "steps: must be greater than or equal to 1, got 0"),
        ("learner.optimizer.lr=-1", "learner.optimizer.lr: must be greater than or equal to 0, got -1"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_the_fix(override, expected):
    text = PPO if override.startswith("critic") else GRPO
    assert problems(text, override) == [expected]


def test_an_unknown_key_unlike_any_other_is_answered_with_the_valid_ones():
    (line,) = problems(GRPO, "ray.zzz=1")
    assert line == "ray.zzz: unknown key; valid here: address, num_cpus, on_demand, start_timeout_s"


def test_a_missing_section_is_required_by_name():
    assert problems("name: x\nalgorithm: grpo\n") == ["model: is required", "data: is required"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [1", "is not YAML"),
        ("- a\n- b\n", "must be a mapping of sections, such as `algorithm: grpo`"),
        ("", "must be a mapping of sections"),
    ],
)
def test_a_file_that_is_no_config_is_one_problem(text, expected):
    (line,) = problems(text)
    assert expected in line


def test_a_missing_file_is_a_problem_of_its_own(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot be read \(No such file or directory\); give a recipe's path"):
        load_config(tmp_path / "none.yaml")


def test_overrides_are_applied_in_order_and_parsed_as_yaml():
    found = config(
        GRPO,
        "steps=5",
        "steps=7",
        "learner.optimizer.lr=1e-5",
        "rollout.sampling.stop=[a, b]",
        "learner.zero={stage: 2}",
        "data.system_prompt=null",
        "deterministic=true",
    )
    assert found.steps == 7
    assert found.learner.optimizer.lr == 1e-5
    assert found.rollout.sampling.stop == ["a", "b"]
    assert found.learner.zero.stage == 2
    assert found.data.system_prompt is None
    assert found.deterministic is True
    assert found.model.max_length == 64


def test_an_override_reaches_into_a_section_that_the_file_leaves_out_or_writes_short():
    found = config(GRPO.replace("{name: grpo, kl: {place: none}}", "grpo"), "algorithm.kl.coef=0.1", "ray.num_cpus=3")
    assert (found.algorithm.name, found.algorithm.kl.coef, found.ray.num_cpus) == ("grpo", 0.1, 3)


def test_wrong_overrides_are_listed_with_the_file_s_problems():
    found = problems(GRPO, "steps", "name.x=1", "modle.path=a")
    assert found == [
        "steps: an override is written key.path=value, such as learner.optimizer.lr=1e-5",
        "name.x=1: name is a value, not a section",
        "modle: unknown key; did you mean model?",
    ]


def test_an_override_s_value_may_hold_equal_signs():
    assert parse_override("data.suffix=a=b") == (["data", "suffix"], "a=b")


@pytest.mark.parametrize("text", [GRPO, PPO, DPO])
def test_the_resolved_config_loads_again_to_the_same(tmp_path, text):
    first = config(text)
    saved = tmp_path / "config.yaml"
    saved.write_text(yaml.safe_dump(first.model_dump(mode="json"), sort_keys=False))
    assert load_config(saved) == first


def test_a_config_cannot_be_changed_after_it_was_checked():
    with pytest.raises(ValueError, match="frozen"):
        config(GRPO).learner.ranks = 2


def test_checking_changes_nothing_in_the_config():
    found = config(PPO)
    before = found.model_dump()
    from cluster.config.rules.general import cross_section_problems

    assert cross_section_problems(found) == []
    assert found.model_dump() == before


def test_no_section_has_more_keys_than_a_reader_can_hold():
    """About a dozen, as STYLE says; these are the longest."""
    sizes = {}

    def walk(section, name):
        sizes[name] = len(section.model_fields)
        for key, field in section.model_fields.items():
            for part in (field.annotation, *getattr(field.annotation, "__args__", ())):
                if isinstance(part, type) and hasattr(part, "model_fields"):
                    walk(part, key)

    walk(Config, "config")
    assert {name: size for name, size in sizes.items() if size > 13} == {"config": 17, "data": 14, "rollout": 15}


def test_loading_a_config_imports_no_engine():
    code = (
        "import sys; import cluster.config, cluster.cli, cluster.config.placement; "
        "print([m for m in ('torch', 'ray', 'vllm', 'deepspeed', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
