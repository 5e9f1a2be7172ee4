"""Built-in rewards, with values worked out by hand."""

import pytest
import reasoning_gym as gym

from actors.rewards import builtin


@pytest.mark.parametrize(("response", "score"), [("7", 1.0), (" 7\n", 1.0), ("7.", 0.0), ("seven", 0.0), ("", 0.0)])
def test_exact_match_folds_whitespace_only(response, score):
    assert builtin.exact_match("p", response, {"answer": "7"}) == score


@pytest.mark.parametrize(
    ("response", "score"), [("3 + 4 = 7", 1.0), (" 3 + 4 = 7\n", 1.0), ("So 3 + 4 = 7", 0.0), ("7", 0.0), ("", 0.0)]
)
def test_regex_is_found_or_not_in_the_stripped_response(response, score):
    assert builtin.regex("p", response, {}, pattern=r"^\d+ \+ \d+ = \d+$") == score


def test_exact_match_of_another_column_ignoring_case():
    assert builtin.exact_match("p", "new  York", {"city": "New York"}, key="city", ignore_case=True) == 1.0
    assert builtin.exact_match("p", "new York", {"city": "New York"}, key="city") == 0.0


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("2 + 3 = 5", 5.0),
        ("10-3", 3.0),
        ("f(2)-3", 3.0),
        ("It is -3.", -3.0),
        ("= \N{MINUS SIGN}4", -4.0),
        ("1,234.50 dollars", 1234.5),
        ("first 2, then 3, ok", 3.0),
        ("none", None),
        ("-", None),
    ],
)
def test_last_number_in_a_text(text, number):
    assert builtin.find_last_number(text) == number


def test_last_number_compares_with_the_answer():
    assert builtin.last_number("p", "5 - 8 = -3", {"answer": "-3"}) == 1.0
    assert builtin.last_number("p", "5 - 8 = 3", {"answer": "-3"}) == 0.0
    assert builtin.last_number("p", "no idea", {"answer": 3}) == 0.0
    with pytest.raises(ValueError, match="holds no number"):
        builtin.last_number("p", "3", {"answer": "three"})


@pytest.mark.parametrize(
    ("answer", "response", "score"),
    [
        ("1/2", "The answer is $\\frac{2}{4}$", 1.0),
        ("\\frac{1}{2}", "so \\boxed{0.5}", 1.0),
        ("12", "we get $3 \\cdot 4$", 1.0),
        ("12", "we get $13$", 0.0),
        ("12", "no idea", 0.0),
    ],
)
def test_math_verify_compares_values_not_spellings(answer, response, score):
    assert builtin.math_verify("p", response, {"answer": answer}) == score


def test_reasoning_gym_asks_the_task_that_made_the_question():
    params = {"min_terms": 2, "max_terms": 2}
    entry = gym.create_dataset("chain_sum", size=1, seed=4, **params)[0]
    data = {**entry, "prompt": entry["question"], "task": "chain_sum", "task_params": params}
    right = entry["answer"]
    assert builtin.reasoning_gym("p", right, data) == 1.0
    assert builtin.reasoning_gym("p", f"so <answer> {right} </answer> yes", data) == 1.0
    assert builtin.reasoning_gym("p", f"{int(right) + 1}", data) < 1.0
    assert builtin.reasoning_gym("p", f"hm\nthe sum is {right}.", data, extract="last_number") == 1.0
    assert builtin.reasoning_gym("p", f"hm\n{right}", data, extract="last_line") == 1.0
    with pytest.raises(ValueError, match="extract must be"):
        builtin.reasoning_gym("p", right, data, extract="first")


def test_reasoning_gym_scores_a_task_whose_score_reads_the_metadata():
    # countdown accepts any expression that reaches the target with the given numbers.
    entry = gym.create_dataset("countdown", size=1, seed=0)[0]
    data = {**entry, "prompt": entry["question"], "task": "countdown", "task_params": {}}
    assert builtin.reasoning_gym("p", entry["metadata"]["expression"], data) == 1.0
    assert builtin.reasoning_gym("p", "1", data) < 1.0


@pytest.mark.parametrize(("tokens", "penalty"), [(0, 0.0), (80, 0.0), (85, -0.25), (100, -1.0), (140, -1.0)])
def test_length_penalty_falls_linearly_over_the_cache(tokens, penalty):
    data = {"response_tokens": tokens}
    assert builtin.length_penalty("p", "r", data, max_tokens=100, cache_tokens=20) == pytest.approx(penalty)


def test_repetition_penalty_is_the_share_of_repeated_ngrams():
    # bigrams of "a b a b a": ab ba ab ba: 2 of 4 repeat an earlier one.
    assert builtin.repetition_penalty("p", "a b a b a", {}, n=2) == pytest.approx(-0.5)
    assert builtin.repetition_penalty("p", "a b a b a", {}, n=2, max_penalty=3.0) == pytest.approx(-1.5)
    assert builtin.repetition_penalty("p", "a b c d", {}, n=2) == 0.0
    assert builtin.repetition_penalty("p", "a", {}, n=2) == 0.0


def test_sentiment_is_signed():
    # VADER: love weighs 3.2, compound = 3.2 / sqrt(3.2^2 + 15) = 0.6369.
    assert builtin.sentiment("p", "I love it", {}) == pytest.approx(0.6369)
    assert builtin.sentiment("p", "I hate it", {}) < -0.5
    assert builtin.sentiment("p", "a table", {}) == 0.0
