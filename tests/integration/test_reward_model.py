"""The reward model reads its score at the last real token, whatever is padded and with what."""

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
)

from actors.models.reward_model import RewardModel, load_classifier, score_batch
from tests.fixtures.tiny_model import make_tiny_model, make_tiny_tokenizer


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A tiny Llama with a one-label head whose pad token is its EOS."""
    return make_classifier(tmp_path_factory.mktemp("rm"), labels=1)


def make_classifier(directory, labels):
    make_tiny_model(directory)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(directory, num_labels=labels)
    torch.nn.init.normal_(model.score.weight)
    model.config.pad_token_id = model.config.eos_token_id
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def rewards(directory):
    return RewardModel(directory, dtype=torch.float32)


def by_hand(model, ids):
    """The head on the hidden state of the last token, no padding in sight."""
    with torch.inference_mode():
        hidden = model.model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
        return float(hidden @ model.score.weight[0])


def test_score_is_the_head_at_the_last_token_in_the_order_given(rewards):
    # Every sequence ends with the EOS, which is also the pad token: 1.
    sequences = [[7, 8, 1], [9, 10, 11, 12, 13, 1], [20, 1], [30, 31, 32, 1, 1]]
    wanted = [by_hand(rewards.model, ids) for ids in sequences]
    assert np.ptp(wanted) > 0.1
    np.testing.assert_allclose(rewards.score_tokens(sequences), wanted, atol=1e-4)


def test_a_bfloat16_model_s_scores_are_float32(directory):
    """Scores of about 10 in bfloat16 would all be multiples of 1/16: close responses would tie."""
    half = RewardModel(directory)
    scores = torch.from_numpy(half.score_tokens([[7, 8, number, 1] for number in range(20, 40)]))
    assert scores.abs().max() > 1
    assert (scores.bfloat16().double() != scores).any()
    assert half.model.score.weight.dtype == torch.bfloat16, "the weights stay as they were"


def test_left_padding_does_not_shift_learned_positions():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=100, n_positions=32, n_embd=32, n_layer=1, n_head=2, num_labels=1)
    model = GPT2ForSequenceClassification(config).eval()
    with torch.inference_mode():
        alone = score_batch(model, torch.tensor([[7, 8, 9]]), torch.tensor([[1, 1, 1]]))
        padded = score_batch(model, torch.tensor([[1, 1, 7, 8, 9]]), torch.tensor([[0, 0, 1, 1, 1]]))
    np.testing.assert_allclose(padded, alone, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_with_the_eos_changes_nothing(rewards, side):
    sequences, width = [[7, 8, 1], [9, 10, 11, 12, 13, 1]], 9
    rows, masks = [], []
    for ids in sequences:
        pad, ones, zeros = [1] * (width - len(ids)), [1] * len(ids), [0] * (width - len(ids))
        rows.append(pad + ids if side == "left" else ids + pad)
        masks.append(zeros + ones if side == "left" else ones + zeros)
    with torch.inference_mode():
        scores = score_batch(rewards.model, torch.tensor(rows), torch.tensor(masks))
    np.testing.assert_allclose(scores, [by_hand(rewards.model, ids) for ids in sequences], atol=1e-4)


def test_the_score_does_not_depend_on_how_the_batch_is_cut(directory, rewards):
    sequences = [[*range(5, 5 + n), 1] for n in (3, 40, 11, 25, 3, 8)]
    small = RewardModel(directory, dtype=torch.float32, max_tokens_per_batch=30)
    np.testing.assert_allclose(small.score_tokens(sequences), rewards.score_tokens(sequences), atol=1e-4)


def test_conversations_are_templated_with_the_models_own_tokenizer(rewards):
    chat = [{"role": "user", "content": "2+3?"}, {"role": "assistant", "content": "5"}]
    text = "<|im_start|>user\n2+3?<|im_end|>\n<|im_start|>assistant\n5<|im_end|>\n"
    wanted = by_hand(rewards.model, make_tiny_tokenizer().encode(text))
    np.testing.assert_allclose(rewards.score_conversations([chat]), [wanted], atol=1e-4)


def test_longer_sequences_keep_their_end_and_are_counted(directory):
    short = RewardModel(directory, dtype=torch.float32, max_length=4)
    scores = short.score_tokens([[5, 6, 7, 8, 9, 1], [5, 1]])
    wanted = [by_hand(short.model, [7, 8, 9, 1]), by_hand(short.model, [5, 1])]
    np.testing.assert_allclose(scores, wanted, atol=1e-4)
    assert short.truncated == 1


def test_an_empty_sequence_is_refused(rewards):
    with pytest.raises(ValueError, match="empty sequence"):
        rewards.score_tokens([[5], []])


def test_a_model_without_a_reward_head_or_with_several_labels_is_refused_with_the_fix(tmp_path):
    with pytest.raises(
        ValueError, match=r"no trained reward head \(score.weight would be random; saved as LlamaForCausal"
    ):
        load_classifier(make_tiny_model(tmp_path / "policy"), torch.float32)
    with pytest.raises(ValueError, match=r"has 3 labels, a reward model has one; .*num_labels 1"):
        load_classifier(make_classifier(tmp_path / "three", labels=3), torch.float32)


def test_an_encoder_uses_its_own_pooling(tmp_path):
    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=100, num_labels=1, **size)
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    make_tiny_tokenizer().save_pretrained(tmp_path)
    rewards = RewardModel(tmp_path, dtype=torch.float32)
    with torch.inference_mode():
        wanted = [float(rewards.model(input_ids=torch.tensor([ids])).logits) for ids in ([5, 6], [7, 8, 9])]
    np.testing.assert_allclose(rewards.score_tokens([[5, 6], [7, 8, 9]]), wanted, atol=1e-5)
