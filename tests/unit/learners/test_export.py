"""An exported policy: whole or absent, and plain transformers finds in it what was trained."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from learners import export
from learners.export import dump_inputs, export_policy
from learners.methods.method import Method, StepInputs, UpdateSettings
from learners.methods.presets import PRESETS
from learners.policy import PolicyLearner
from tests.fixtures.columns import as_rank, policy_engine, random_batch, scores_of
from tests.fixtures.tiny_model import make_tiny_model

FACTS = {
    "run": "tiny-run",
    "model": "some/model",
    "method": "grpo",
    "step": 3,
    "digest": "0123456789abcdef",
    "evaluation": {"accuracy": "0.50 to 0.75"},
}


def learner_of(engine):
    return PolicyLearner(engine, Method(PRESETS["grpo"]), UpdateSettings(micro_batch_tokens=4096))


def trained(engine):
    """The engine after a step, so that its weights are nowhere else."""
    batch = random_batch(0, [4], [[3, 5]])
    reference = np.full(8, -4.0, np.float32)
    assert learner_of(engine).update(StepInputs(0, batch, scores_of(1.0, 0.0), reference=reference)).applied
    return engine


@pytest.mark.parametrize(
    ("tied", "dtype", "shard_bytes"),
    [(True, "float32", 4 << 30), (False, "float32", 1 << 17), (True, "bfloat16", 4 << 30)],
    ids=["tied", "untied in shards", "bfloat16"],
)
def test_plain_transformers_loads_the_trained_parameters_bit_for_bit(tmp_path, monkeypatch, tied, dtype, shard_bytes):
    monkeypatch.setattr(export, "SHARD_BYTES", shard_bytes)
    source = make_tiny_model(tmp_path / "source", tied=tied)
    # the source claims the other dtype: what counts is what was trained in
    config = json.loads((source / "config.json").read_text())
    config["dtype"] = "bfloat16" if dtype == "float32" else "float32"
    (source / "config.json").write_text(json.dumps(config))
    engine = trained(policy_engine(source, dtype=dtype))
    target = tmp_path / "policy" / "step-3"
    export_policy(learner_of(engine), target, source, FACTS)
    loaded = AutoModelForCausalLM.from_pretrained(target)
    found, expected = dict(loaded.named_parameters()), dict(engine.module.named_parameters())
    assert list(found) == list(expected)
    assert all(found[n].dtype == p.dtype and torch.equal(found[n], p) for n, p in expected.items())
    assert (target / "model.safetensors.index.json").exists() == (shard_bytes < 4 << 30)
    assert tied == (loaded.lm_head.weight is loaded.model.embed_tokens.weight)


def test_tokenizer_chat_template_card_and_facts_come_along(tmp_path):
    source = make_tiny_model(tmp_path / "source")
    export_policy(learner_of(policy_engine(source)), tmp_path / "step-3", source, FACTS)
    chat = [{"role": "user", "content": "1+1"}]
    texts = [
        AutoTokenizer.from_pretrained(p).apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        for p in (source, tmp_path / "step-3")
    ]
    assert texts[0] == texts[1] == "<|im_start|>user\n1+1<|im_end|>\n<|im_start|>assistant\n"
    facts = json.loads((tmp_path / "step-3" / "raylign.json").read_text())
    assert facts == {"run": "tiny-run", "step": 3, "digest": "0123456789abcdef"}
    card = (tmp_path / "step-3" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers") and "| accuracy | 0.50 to 0.75 |" in card
    assert "0123456789ab" in card and "GRPO" in card
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize("existing", [False, True])
def test_a_failure_leaves_no_half_directory_and_an_earlier_export_as_it_was(tmp_path, monkeypatch, existing):
    source = make_tiny_model(tmp_path / "source")
    learner = learner_of(policy_engine(source))
    target = tmp_path / "policy" / "step-3"
    if existing:
        export_policy(learner, target, source, FACTS)
    before = {p.name: p.read_bytes() for p in target.iterdir()} if existing else None

    def fail(facts):
        raise OSError("no space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(export, "model_card", fail)
        with pytest.raises(OSError, match="no space"):
            export_policy(learner, target, source, {**FACTS, "step": 4})
    assert ({p.name: p.read_bytes() for p in target.iterdir()} if target.exists() else None) == before
    export_policy(learner, target, source, {**FACTS, "step": 4})
    assert json.loads((target / "raylign.json").read_text())["step"] == 4
    assert [p.name for p in target.parent.iterdir()] == ["step-3"]


def test_other_ranks_gather_along_and_write_nothing(tmp_path):
    source = make_tiny_model(tmp_path / "source")
    export_policy(learner_of(as_rank(policy_engine(source), 1, 2)), tmp_path / "policy" / "step-3", source, FACTS)
    assert not (tmp_path / "policy").exists()


def test_a_dumped_step_holds_its_columns_without_pickle(tmp_path):
    batch = random_batch(0, [4], [[3, 5]])
    old = np.full(8, -1.0, np.float32)
    dump_inputs(tmp_path / "deep" / "step.npz", StepInputs(7, batch, scores_of(1.0, np.nan), kl_coef=0.5, old=old))
    with np.load(tmp_path / "deep" / "step.npz", allow_pickle=False) as found:
        assert int(found["step"]) == 7 and float(found["kl_coef"]) == 0.5
        assert np.array_equal(found["scores"], [1.0, np.nan], equal_nan=True)
        assert np.array_equal(found["token_ids"], batch.token_ids) and np.array_equal(found["old"], old)
        assert "reference" not in found and "values" not in found


def test_every_file_is_on_the_disk_before_the_export_has_its_name(tmp_path, monkeypatch):
    source, target = make_tiny_model(tmp_path / "source"), tmp_path / "step-3"
    synced = []
    monkeypatch.setattr(export, "fsync", lambda path: synced.append((path.name, target.exists())))
    export_policy(learner_of(policy_engine(source)), target, source, FACTS)
    written = {path.name for path in target.iterdir()}
    assert {name for name, named in synced if not named} == written | {".step-3.tmp"}
    assert synced[-1] == (tmp_path.name, True)
