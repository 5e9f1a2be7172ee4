"""The config reference is what the schema and the checks say now, and says something of every key."""

from __future__ import annotations

import ast
import types
from collections.abc import Iterator
from typing import Any

import pytest

from cluster.config.schema import Config
from docs.tools.reference import NO_KEYS, PAGE, matches, page, parts, strangers
from docs.tools.rules import MODULES, UNKNOWN, Reader, named_keys
from tests.fixtures.pages import ROOT

ELSEWHERE = {
    "cluster/config/loading/load.py",  # of the YAML itself: any path may be named
    "cluster/config/loading/paths.py",  # of files that two folders hold: any path of one may be named
    "cluster/config/loading/pipeline.py",  # of stages among each other
    "cluster/driver.py",  # what a cluster lacks once it is joined
    "cluster/service/shipping.py",  # what a job would not find
}


def test_the_page_is_what_the_source_says():
    assert PAGE.read_text() == page(), "the config reference is stale; run `make reference`"


def test_every_key_has_a_text():
    found = [key for part in parts() for key in part.keys]
    assert len(found) > 150
    assert [key.path for key in found if not key.text] == []
    assert [part.path for part in parts() if not part.text] == []


def leaves(section: dict[str, Any], sections: dict[str, Any], path: str = "") -> Iterator[str]:
    """Keys that hold a value, of a JSON schema."""
    for name, key in section["properties"].items():
        many = key.get("additionalProperties") or {}
        refs = [one["$ref"] for one in (key, *key.get("anyOf", ())) if "$ref" in one]
        below = (many.get("$ref") if isinstance(many, dict) else None) or next(iter(refs), None)
        if below is None:
            yield path + name
        else:
            inner = sections[below.rpartition("/")[2]]
            yield from leaves(inner, sections, f"{path}{name}.{'' if refs else 'NAME.'}")


def test_every_key_of_the_schema_stands_once():
    """Counted in another way, by the JSON schema that pydantic makes."""
    schema = Config.model_json_schema()
    assert sorted(key.path for part in parts() for key in part.keys) == sorted(leaves(schema, schema["$defs"]))


def test_defaults_are_those_of_where_a_section_stands():
    """The critic's optimizer has another learning rate than the policy's."""
    defaults = {key.path: key.default for part in parts() for key in part.keys}
    assert (defaults["learner.optimizer.lr"], defaults["critic.optimizer.lr"]) == ("`1e-06`", "`1e-05`")
    assert (defaults["name"], defaults["data.suffix"], defaults["reward.safety.bound"]) == ("required", '`""`', "`0`")


def test_types_say_bounds_and_choices():
    kinds = {key.path: key.type for part in parts() for key in part.keys}
    assert kinds["rollout.sampling.top_p"] == "number, above 0, at most 1"
    assert kinds["learner.zero.stage"] == "`0`, `1`, `2`, `3`"
    assert kinds["algorithm.loss.dual_clip"] == "number, above 1"
    assert kinds["critic.value_clip"] == "number, above 0 or `null`", "its default is another than null"
    assert kinds["learner.optimizer.betas"] == "2 times number, at least 0, at most 1"


def test_a_check_names_keys_that_there_are():
    assert strangers(named_keys(), parts()) == []


def test_every_file_that_makes_problems_is_read():
    makes = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "cluster").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Problem"
    }
    assert makes == {f"{module.replace('.', '/')}.py" for module in MODULES} | ELSEWHERE


def test_rules_name_their_keys_wholly():
    """Where no model, data or machine is looked at, every path is known but for a name that a recipe gives."""
    named = [each for each in named_keys() if "/rules/" in each.file or each.file.endswith("transport.py")]
    assert len(named) > 100
    assert [each for each in named if each.path.split(".")[0] == UNKNOWN or not each.sentence] == []


RULES = """
KEYS = {"lr": 1, "eps": 2}

def rule(config):
    for key, default in (("reward", 1), ("rollout", 2)):
        yield Problem(key, f"{config.name} has no use for a {key}, got {default}; remove it")
    for key in ("epochs", "minibatches"):
        yield Problem(f"learner.{key}", "is too many")
    zeros = [("learner.zero", 1), *([("critic.zero", 2)] if config.critic else [])]
    for path, zero in zeros:
        yield from below(path, zero)
    for key, _ in KEYS.items():
        yield Problem(f"optimizer.{key}", "must be small")
    for where, model in models(config):
        wrong = f"the model {model} is none"
        found.append(Problem(where, wrong))

def below(path, zero):
    yield Problem(f"{path}.stage", f"needs stage {zero}")

def models(config):
    yield from ((f"reward.models.{name}.path", model) for name, model in config.models.items())
    yield ("model.path", config.model)
"""


@pytest.fixture
def read(tmp_path):
    (tmp_path / "rules.py").write_text(RULES)
    module = types.ModuleType("some.rules")
    module.__file__, module.KEYS = str(tmp_path / "rules.py"), {"lr": 1, "eps": 2}
    return [(each.path, each.sentence) for each in Reader(module).read()]


def test_a_path_is_followed_through_loops_callers_generators_and_tables(read):
    assert read == [
        ("reward", "… has no use for a …; remove it"),
        ("rollout", "… has no use for a …; remove it"),
        ("learner.epochs", "is too many"),
        ("learner.minibatches", "is too many"),
        ("optimizer.lr", "must be small"),
        ("optimizer.eps", "must be small"),
        ("reward.models.*.path", "the model … is none"),
        ("model.path", "the model … is none"),
        ("learner.zero.stage", "needs stage …"),
        ("critic.zero.stage", "needs stage …"),
    ]


def test_what_only_a_run_can_tell_fits_any_name_and_no_other_depth():
    assert matches("reward.models.*.path", "reward.models.NAME.path")
    assert not matches("reward.models.*.path", "reward.judges.NAME.path")
    assert not matches("reward.models.*", "reward.models.NAME.path")
    assert "placement" in NO_KEYS
