"""LoRA on the plain engine: only the adapter learns, the base is the reference, exports hold what was trained."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from actors.models.adapters import PREFIX, adapted_layers, adapter_shapes, adapters_off
from actors.models.lora import LoraSettings
from actors.models.reference import ReferenceScorer
from actors.transports.buckets import tensors_of
from learners.engines.merging import Scaling
from learners.engines.models import load_policy, load_reward_model
from learners.engines.settings import ModelSettings, OptimizerSettings
from learners.engines.torch_engine import TorchEngine
from learners.export import export_adapter, export_policy
from learners.methods.method import Method, StepInputs, UpdateSettings, assemble
from learners.methods.presets import PRESETS, RewardModelSettings
from learners.policy import PolicyLearner
from learners.reward import RewardLearner
from tests.fixtures.columns import CPU, plain_logprobs, random_batch, scores_of
from tests.fixtures.tiny_model import make_tiny_model

LORA = LoraSettings(rank=4, alpha=6.0)
BATCH = random_batch(5, [4, 3], [[5, 2, 7], [3, 4, 1]])
TOKENS = len(BATCH.token_ids)
FACTS = {"run": "r", "model": "m", "method": "grpo", "step": 1, "digest": "0" * 16, "evaluation": {}}
ADAPTED_BYTES = 4 * 2 * 4 * (256 + 192 * 2 + 256 + 384 * 3)
"""float32, two layers, rank 4 times in + out of q, k and v, o, and three of the feed-forward."""


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def path(request, tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny", tied=request.param)


def engine_of(path, lora=LORA, dtype="float32", load=load_policy, **model):
    module = load(ModelSettings(str(path), dtype=dtype, lora=lora, **model))
    return TorchEngine(module, optimizer=OptimizerSettings(lr=1e-2, max_grad_norm=0.0), dtype=dtype, device=CPU)


def learner_of(engine, name="grpo", temperature=1.0):
    return PolicyLearner(engine, Method(PRESETS[name], temperature=temperature), UpdateSettings(micro_batch_tokens=64))


def logprobs(learner, of="logprobs"):
    return assemble([getattr(learner, of)(BATCH)], TOKENS)


def train(learner, steps=3):
    reference = logprobs(learner, "reference_logprobs")
    for step in range(steps):
        inputs = StepInputs(step, BATCH, scores_of(1, 0, 2, 0, 1, 3), reference=reference, kl_coef=0.01)
        assert learner.update(inputs).applied
    return learner


def test_a_new_adapter_changes_nothing_and_its_start_depends_on_its_seed_alone(path):
    plain = learner_of(engine_of(path, lora=None))
    torch.manual_seed(1)
    first = engine_of(path)
    torch.manual_seed(2)
    second, other = engine_of(path), engine_of(path, dataclasses.replace(LORA, seed=7))
    assert np.array_equal(logprobs(learner_of(first)), logprobs(plain))
    starts = [[p.clone() for n, p in e.module.named_parameters() if ".lora_A." in n] for e in (first, second, other)]
    assert all(torch.equal(a, b) for a, b in zip(starts[0], starts[1], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(starts[0], starts[2], strict=True))


def test_training_moves_the_adapter_and_nothing_else(path):
    engine = engine_of(path)
    before = {n: p.detach().clone() for n, p in engine.module.named_parameters()}
    train(learner_of(engine))
    moved = {n for n, p in engine.module.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {n for n in before if ".lora_A." in n or ".lora_B." in n}
    assert len(moved) == 2 * 7 * 2


def test_the_reference_is_the_base_before_and_after_training_bit_for_bit(path):
    """At a temperature, as the reference of a run that samples at one."""
    plain = ReferenceScorer(
        str(path), dtype="float32", attention="sdpa", temperature=0.7, max_tokens=64, device="cpu"
    ).logprobs(BATCH)[1]
    learner = learner_of(engine_of(path), temperature=0.7)
    before = logprobs(learner, "reference_logprobs")
    np.testing.assert_allclose(before, plain, atol=1e-5)
    train(learner)
    assert np.array_equal(logprobs(learner, "reference_logprobs"), before)
    assert np.abs(logprobs(learner) - before).max() > 0.01


def test_the_adapter_learns_on_after_it_was_off(path):
    engine = engine_of(path)
    with adapters_off(engine.module):
        assert all(layer.disable_adapters for layer in adapted_layers(engine.module).values())
    train(learner_of(engine), steps=1)
    assert all(p.parameter.requires_grad for p in engine._trainable)


def test_a_policy_that_is_tuned_whole_is_no_reference(path):
    with pytest.raises(ValueError, match="tuned whole is not its own reference"):
        learner_of(engine_of(path, lora=None)).reference_logprobs(BATCH)


def test_what_is_published_is_the_adapter_alone_under_peft_s_names(path):
    learner = train(learner_of(engine_of(path)))
    *buckets, summary = learner.weights(5_000)
    found = {name: tensor for bucket in buckets for name, tensor in tensors_of(bucket)}
    assert {n: tuple(t.shape) for n, t in found.items()} == adapter_shapes(str(path), LORA)
    assert len(buckets) > 2 and summary.nbytes == ADAPTED_BYTES
    name = "model.layers.1.self_attn.o_proj.lora_B"
    trained = dict(learner._engine.module.named_parameters())[f"{name}.default.weight"]
    assert torch.equal(found[f"{PREFIX}{name}.weight"], trained)
    assert trained.abs().max() > 0


def test_a_checkpoint_holds_the_adapter_alone_and_goes_on_bit_for_bit(path, tmp_path):
    first = train(learner_of(engine_of(path)))
    first.save(tmp_path)
    held = load_file(tmp_path / "rank-0.safetensors")
    masters = {name: t for name, t in held.items() if name.endswith("/master")}
    assert sum(t.nbytes for t in masters.values()) == ADAPTED_BYTES
    other = learner_of(engine_of(path, dataclasses.replace(LORA, seed=3)))
    other.load(tmp_path)
    for learner in (first, other):
        train(learner, steps=2)
    for (name, a), (_, b) in zip(
        first._engine.module.named_parameters(), other._engine.module.named_parameters(), strict=True
    ):
        assert torch.equal(a, b), name


def test_gradient_checkpointing_changes_no_gradient_of_the_first_layer_s_adapter(path):
    learners = [train(learner_of(engine_of(path, gradient_checkpointing=on)), steps=1) for on in (False, True)]
    moved = [dict(learner._engine.module.named_parameters()) for learner in learners]
    name = "model.layers.0.self_attn.q_proj.lora_B.default.weight"
    assert moved[0][name].abs().max() > 1e-3
    for name in moved[0]:
        torch.testing.assert_close(moved[0][name], moved[1][name], atol=1e-4, rtol=0)


def test_a_merged_export_is_the_learner_s_policy_in_plain_transformers(path, tmp_path):
    learner = train(learner_of(engine_of(path)))
    export_policy(learner, tmp_path / "policy" / "step-1", path, FACTS)
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path / "policy" / "step-1", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    found = plain_logprobs(loaded, BATCH)[0].detach().numpy()
    np.testing.assert_allclose(found, logprobs(learner), atol=1e-4)


def test_merging_sums_in_float32_and_rounds_once(path):
    weight = torch.full((2, 2), 1.0, dtype=torch.bfloat16)
    down, up = torch.tensor([[1.0, 0.5]]).bfloat16(), torch.tensor([[0.00390625], [0.0]]).bfloat16()
    # 1 + 2 x 2^-8 is the next bfloat16 after 1; half of that lies between two and rounds to the even one
    assert Scaling(2.0, False).merge(weight, down, up).tolist() == [[1.0078125, 1.0], [1.0, 1.0]]
    assert Scaling(2.0, True).merge(weight, down, up).tolist() == [[1.0078125, 1.0], [1.0, 1.0]]
    assert Scaling(3.0, True).merge(weight, down * 2, up).tolist() == [[1.0234375, 1.0], [1.015625, 1.0]]


def test_an_adapter_export_loads_with_peft_and_is_the_learner_s_policy(path, tmp_path):
    learner = train(learner_of(engine_of(path)))
    target = tmp_path / "policy" / "step-1"
    export_adapter(learner, target, path, {**FACTS, "model": str(path)}, LORA)
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(path), target)
    found = plain_logprobs(loaded, BATCH)[0].detach().numpy()
    np.testing.assert_allclose(found, logprobs(learner), atol=1e-4)
    assert json.loads((target / "adapter_config.json").read_text())["base_model_name_or_path"] == str(path)
    assert (target / "adapter_model.safetensors").stat().st_size < 2 * ADAPTED_BYTES
    assert not (target / "config.json").exists() and (target / "tokenizer.json").exists()
    assert "library_name: peft" in (target / "README.md").read_text()


def test_a_reward_model_trains_its_head_beside_the_adapter_and_exports_both(path, tmp_path):
    engine = engine_of(path, load=load_reward_model)
    trained = {p.name for p in engine._trainable}
    assert "classifier.score.weight" in trained and all(".lora_" in n or n.endswith("score.weight") for n in trained)
    learner = RewardLearner(engine, RewardModelSettings(False, 0.0), UpdateSettings(micro_batch_tokens=64))
    batch = random_batch(1, [4, 3], [[5, 2], [3, 4]])
    for step in range(2):  # the head starts at zero: the adapter has no gradient before the head has moved
        assert learner.update(StepInputs(step, batch, scores_of(0, 0, 0, 0))).applied
    assert all(p.parameter.abs().max() > 0 for p in engine._trainable)
    export_policy(learner, tmp_path / "step-1", path, FACTS)
    scores = AutoModelForSequenceClassification.from_pretrained(tmp_path / "step-1")
    assert torch.equal(scores.score.weight, engine.module.classifier.score.weight)
    ids = torch.tensor([[5, 6, 7]])
    expected = engine.module.classifier(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(scores(input_ids=ids).logits, expected, atol=1e-4, rtol=0)


def test_a_bfloat16_adapter_learns_over_float32_masters(path):
    engine = engine_of(path, dtype="bfloat16")
    train(learner_of(engine))
    masters = engine._adamw.masters
    assert {t.dtype for t in masters.values()} == {torch.float32} and len(masters) == len(engine._trainable)
    assert {p.dtype for p in engine.module.parameters()} == {torch.bfloat16}


def test_a_target_that_the_model_lacks_is_named(path):
    with pytest.raises(ValueError, match="q_projection"):
        engine_of(path, dataclasses.replace(LORA, targets=("q_projection",)))
