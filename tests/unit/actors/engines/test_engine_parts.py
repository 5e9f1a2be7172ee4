"""What both engines are made of: the draw of a token, the limits known before a start, weight buckets as bytes."""

from __future__ import annotations

import gc
import json

import numpy as np
import pytest
import torch

from actors.engines.interface import EngineSettings
from actors.engines.limits import end_tokens, room, unsupported_reason, untrainable_reason
from actors.engines.sampling import draw, restrict, uniforms
from actors.transports.buckets import make_buckets, tensors_of, views_of


def test_uniform_numbers_are_flat_and_depend_on_seed_and_position_only():
    u = uniforms(range(20_000), [0] * 20_000)
    assert u.dtype == np.float32 and u.min() >= 0 and u.max() < 1
    assert np.abs(np.histogram(u, bins=10, range=(0, 1))[0] - 2000).max() < 200
    along = uniforms([7] * 20_000, range(20_000))
    assert abs(along.mean() - 0.5) < 0.01 and abs(np.corrcoef(along[:-1], along[1:])[0, 1]) < 0.02
    assert uniforms([3, 9], [4, 5])[1] == uniforms([9], [5])[0]


def test_a_token_is_the_one_whose_stretch_of_probability_holds_the_number():
    """Probabilities 0.5, 0, 0.3, 0.2: their stretches are [0, .5), none, [.5, .8), [.8, 1)."""
    logits = torch.tensor([0.5, 0.0, 0.3, 0.2]).log().expand(6, 4)
    points = np.array([0.0, 0.49, 0.51, 0.79, 0.81, 1 - 2**-24], np.float32)
    tokens, logprobs = draw(logits, points, None, None)
    assert tokens.tolist() == [0, 0, 2, 2, 3, 3]
    np.testing.assert_allclose(logprobs[0].exp(), [0.5, 0.0, 0.3, 0.2], atol=1e-6)


def test_top_k_and_top_p_keep_the_smallest_set_that_reaches_p():
    logits = torch.tensor([0.1, 0.4, 0.3, 0.2]).log().expand(4, 4)
    top_k = torch.tensor([4, 2, 4, 3])
    top_p = torch.tensor([1.0, 1.0, 0.6, 0.01])
    kept = restrict(logits, top_k, top_p).isfinite().tolist()
    assert kept == [
        [True, True, True, True],
        [False, True, True, False],
        [False, True, True, False],
        [False, True, False, False],
    ]


def test_requests_fit_the_window_or_are_refused():
    settings = EngineSettings("anywhere", max_model_len=10)
    assert room(4, 5, settings) == 5 and room(4, 99, settings) == 6
    with pytest.raises(ValueError, match="10 tokens leaves no room within max_model_len 10"):
        room(10, 1, settings)
    with pytest.raises(ValueError, match="at least one token"):
        room(0, 1, settings)


@pytest.mark.parametrize(
    ("config", "settings", "device", "says"),
    [
        ({}, {}, "cpu", None),
        ({"head_dim": 16}, {}, "cpu", "multiple of 32, this model's is 16"),
        ({"head_dim": 16}, {}, "cuda", None),
        ({"hidden_size": 192}, {}, "cpu", "this model's is 48"),
        ({}, {"max_model_len": 513}, "cpu", "max_model_len 513 is past the model's 512 positions"),
        ({}, {"tensor_parallel": 3}, "cuda", "4 attention heads cannot be split over tensor_parallel 3"),
        ({}, {"dtype": "int8"}, "cpu", "dtype must be one of"),
    ],
)
def test_what_the_engine_cannot_run_is_said_before_it_starts(config, settings, device, says):
    whole = {"num_attention_heads": 4, "hidden_size": 128, "max_position_embeddings": 512, **config}
    reason = unsupported_reason(whole, EngineSettings("anywhere", **{"max_model_len": 512, **settings}), device)
    assert reason is None if says is None else says in reason


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({}, None),
        ({"sliding_window": None}, None),
        ({"sliding_window": 64}, None),
        ({"sliding_window": 63}, "lower model.max_length to 63"),
        ({"sliding_window": 8, "use_sliding_window": False}, None),
        ({"sliding_window": 8, "layer_types": ["full_attention", "full_attention"]}, None),
        ({"sliding_window": 8, "layer_types": ["full_attention", "sliding_attention"]}, "sees 8 tokens back"),
        ({"layer_types": ["linear_attention", "full_attention"]}, "kind linear_attention cannot be packed"),
        ({"text_config": {"sliding_window": 8}}, "sees 8 tokens back"),
    ],
)
def test_what_packing_cannot_train_is_said_before_it_starts(config, says):
    reason = untrainable_reason(config, 64)
    assert reason is None if says is None else says in reason


def test_end_tokens_are_those_of_both_configs_and_of_the_tokenizer(tmp_path):
    (tmp_path / "config.json").write_text('{"eos_token_id": 5}')
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [5, 9]}')
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<end>"}')
    (tmp_path / "tokenizer.json").write_text(
        '{"added_tokens": [{"id": 2, "content": "<end>"}, {"id": 3, "content": "x"}]}'
    )
    assert end_tokens(str(tmp_path)) == (2, 5, 9)
    (tmp_path / "tokenizer_config.json").unlink()
    assert end_tokens(str(tmp_path)) == (5, 9)
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "<end>"}}))
    assert end_tokens(str(tmp_path)) == (2, 5, 9), "where older tokenizers name theirs"


def test_buckets_give_back_the_same_bytes_in_bfloat16_and_odd_sizes():
    named = [
        ("odd", torch.arange(3, dtype=torch.bfloat16)),
        ("wide", torch.arange(4, dtype=torch.float32).view(2, 2)),
        ("scalar", torch.tensor(7.0)),
    ]
    buckets = list(make_buckets(named, max_bytes=20))
    assert [(b.index, b.last, b.names) for b in buckets] == [(0, False, ("odd",)), (1, True, ("wide", "scalar"))]
    whole = [pair for b in make_buckets(named, max_bytes=100) for pair in tensors_of(b)]
    assert [n for n, _ in whole] == ["odd", "wide", "scalar"]
    for (_, expected), (_, found) in zip(named, whole, strict=True):
        assert found.dtype == expected.dtype and torch.equal(found, expected)


def test_views_of_a_bucket_outlive_it_and_its_tensors_are_copies():
    named = [("odd", torch.arange(3, dtype=torch.uint8)), ("wide", torch.arange(4, dtype=torch.float32))]
    (bucket,) = make_buckets(named, max_bytes=100)
    bucket.data.flags.writeable = False
    views, own = dict(views_of(bucket)), dict(tensors_of(bucket))
    own["odd"].add_(1)
    del bucket
    gc.collect()
    assert torch.equal(views["odd"], named[0][1]), "a copy was changed, not the bucket"
    assert torch.equal(views["wide"], named[1][1]), "a part that is not aligned to its items is moved"
