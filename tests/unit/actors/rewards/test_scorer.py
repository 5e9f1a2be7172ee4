"""The scorer: what reaches the functions, how parts add up, whom penalties touch."""

import math

import numpy as np
import pytest

from actors.rewards.scorer import Scorer, WeightedModel, score_stats
from actors.types import FinishReason, Prompt, Sample, SampleBatch, ScoreBatch
from tests.fixtures.tiny_model import make_tiny_tokenizer

TOKENIZER = make_tiny_tokenizer()


class FixedRunner:
    """Gives the scores it was made with and keeps what it was asked."""

    def __init__(self, values, errors=None):
        self.values = np.array(values, float)
        self.errors = errors or {}
        self.asked = None
        self.closed = False

    def score(self, prompts, responses, data):
        self.asked = (prompts, responses, data)
        return ScoreBatch(self.values, {"rule": self.values.copy()}, self.errors)

    def close(self):
        self.closed = True


class LengthModel:
    """Scores a conversation by the characters of its last message; NaN for a message of `poison`."""

    def score_conversations(self, conversations):
        self.asked = conversations
        texts = [chat[-1]["content"] for chat in conversations]
        return np.array([math.nan if text == "poison" else len(text) for text in texts])


def batch_of(*rows):
    """Rows of (group, response text, finish reason), in that order."""
    samples = []
    for group, text, finish in rows:
        ids = TOKENIZER.encode(text) + ([TOKENIZER.eos_token_id] if finish is FinishReason.STOP else [])
        zeros = np.zeros(len(ids), np.float32)
        samples.append(Sample(group, group, 0, np.array([5, 6]), np.array(ids), zeros, zeros, ((0, 1),), finish))
    return SampleBatch.from_samples(samples)


PROMPTS = {
    10: Prompt(0, (5, 6), 10, {"prompt": "one?", "answer": "1"}),
    11: Prompt(1, (5, 6), 11, {"prompt": "two?", "messages": [{"role": "user", "content": "all of it"}]}),
}
STOP, LENGTH = FinishReason.STOP, FinishReason.LENGTH


def test_functions_get_the_prompts_text_the_decoded_response_and_the_rows_data():
    runner = FixedRunner([1, 2, 3])
    Scorer(TOKENIZER, runner).score(batch_of((11, "b", STOP), (10, "aa", LENGTH), (11, "", STOP)), PROMPTS)
    prompts, responses, data = runner.asked
    assert prompts == ["two?", "one?", "two?"]
    assert responses == ["b", "aa", ""]
    assert data[1] == {"prompt": "one?", "answer": "1", "response_tokens": 2, "finish_reason": "length"}
    assert (data[0]["response_tokens"], data[0]["finish_reason"]) == (2, "stop")


def test_missing_eos_penalty_touches_truncated_rows_only():
    batch = batch_of((10, "a", STOP), (10, "b", LENGTH), (10, "c", FinishReason.ABORT))
    scores, stats = Scorer(TOKENIZER, FixedRunner([1, 1, 1]), missing_eos_penalty=0.25).score(batch, PROMPTS)
    assert scores.values.tolist() == [1.0, 0.75, 1.0]
    assert scores.parts["missing_eos"].tolist() == [0.0, -0.25, 0.0]
    assert stats.parts["rule"] == 1.0
    without, _ = Scorer(TOKENIZER, FixedRunner([1, 1, 1])).score(batch, PROMPTS)
    assert "missing_eos" not in without.parts


def test_reward_models_add_by_weight_and_see_the_whole_conversation():
    model = LengthModel()
    scorer = Scorer(TOKENIZER, FixedRunner([1, 2]), models=[WeightedModel("rm", model, weight=0.5)])
    scores, stats = scorer.score(batch_of((10, "abcd", STOP), (11, "ab", STOP)), PROMPTS)
    assert scores.values.tolist() == [1 + 0.5 * 4, 2 + 0.5 * 2]
    assert stats.parts == {"rule": 1.5, "rm": 3.0}
    assert model.asked[0] == [{"role": "user", "content": "one?"}, {"role": "assistant", "content": "abcd"}]
    assert model.asked[1][0]["content"] == "all of it"


def test_a_failed_part_leaves_its_own_row_without_a_score_and_says_why():
    runner = FixedRunner([1, math.nan, 3, 3], {1: "reward 'rule', sample 1: boom"})
    scorer = Scorer(TOKENIZER, runner, models=[WeightedModel("rm", LengthModel())], missing_eos_penalty=1.0)
    batch = batch_of((10, "a", STOP), (10, "b", LENGTH), (10, "poison", STOP), (10, "a", STOP))
    scores, stats = scorer.score(batch, PROMPTS)
    np.testing.assert_array_equal(scores.values, [2, math.nan, math.nan, 4])
    assert scores.errors == {1: "reward 'rule', sample 1: boom", 2: "reward model 'rm', sample 2: returned nan"}
    assert scores.score(1).value is None
    # mean of 2 and 4, and their standard deviation with Bessel's correction: sqrt(2).
    assert (stats.count, stats.failed, stats.mean) == (4, 2, 3.0)
    assert stats.std == pytest.approx(math.sqrt(2))
    assert stats.parts["rm"] == 1.0 and len(stats.errors) == 2


def test_statistics_of_a_batch_without_scores_are_nan_and_not_zero():
    stats = score_stats(ScoreBatch(np.array([math.nan]), {"rule": np.array([math.nan])}, {0: "x"}))
    assert stats.failed == 1 and math.isnan(stats.mean) and math.isnan(stats.std) and math.isnan(stats.parts["rule"])


def test_close_ends_the_runner_and_a_negative_penalty_is_refused():
    runner = FixedRunner([])
    Scorer(TOKENIZER, runner).close()
    assert runner.closed
    with pytest.raises(ValueError, match="must be 0 or more"):
        Scorer(TOKENIZER, runner, missing_eos_penalty=-1.0)
