"""Reward functions are named by reference, and a wrong reference is explained before anything runs."""

import math

import pytest

from actors.rewards import RewardSpec, batched
from actors.rewards.child import check_signature, number
from actors.rewards.spec import BUILT_IN, resolve_function


def test_short_names_modules_and_files_resolve(tmp_path):
    (tmp_path / "mine.py").write_text("")
    assert resolve_function("last_number") == "actors.rewards.builtin:last_number"
    assert resolve_function("package.module:f") == "package.module:f"
    assert resolve_function("mine.py:f", base=tmp_path) == f"{tmp_path.resolve()}/mine.py:f"


def test_every_built_in_name_is_a_function():
    from actors.rewards import builtin

    assert all(callable(vars(builtin)[name]) for name in BUILT_IN)


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("last_numbr", r"did you mean last_number\?"),
        ("zzz", "built in are exact_match, last_number"),
        ("missing.py:f", "there is no file"),
        ("module:not-a-name", "name of a function after the colon"),
        ("a/b:f", "neither a module nor a file"),
    ],
)
def test_wrong_references_say_what_to_write(tmp_path, reference, reason):
    with pytest.raises(ValueError, match=reason):
        resolve_function(reference, base=tmp_path)


@pytest.mark.parametrize("wrong", [{"name": ""}, {"timeout_s": 0.0}, {"weight": math.nan}])
def test_a_spec_that_cannot_work_is_refused(wrong):
    with pytest.raises(ValueError, match="reward"):
        RewardSpec(**{"name": "r", "function": "exact_match", **wrong})


@pytest.mark.parametrize(
    ("value", "score", "problem"),
    [
        (1, 1.0, None),
        (True, 1.0, None),
        (0, 0.0, None),
        (None, None, "returned None, not a number"),
        ("3", None, "returned '3', not a number"),
        ([1], None, "returned [1], not a number"),
        (math.nan, None, "returned nan"),
        (-math.inf, None, "returned -inf"),
    ],
)
def test_only_finite_numbers_are_scores(value, score, problem):
    assert number(value) == (score, problem)


def test_a_function_that_cannot_be_called_by_the_convention_is_refused():
    check_signature(lambda prompt, response, data, scale=1: 0, {"scale": 2})
    with pytest.raises(TypeError, match=r"cannot be called as fn\(prompt, response, data\)"):
        check_signature(lambda response: 0, {})
    with pytest.raises(TypeError, match="scale"):
        check_signature(lambda prompt, response, data: 0, {"scale": 2})


def test_the_batched_mark_leaves_the_function_as_it_is():
    @batched
    def reward(prompts, responses, data):
        return [1.0] * len(responses)

    assert reward(["p"], ["r"], [{}]) == [1.0]
