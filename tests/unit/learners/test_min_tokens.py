"""A least length bars end tokens in sampling, and alike in the log-probs that are trained on: of the policy, its
entropy and its reference; what proves the weights asks for the model's own distribution."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from actors.engines.interface import EngineSettings
from actors.engines.torch_engine import TorchEngine
from actors.models.forward import Barred
from actors.models.reference import ReferenceScorer
from actors.rollouts.generation import Generation
from actors.types import Prompt, SampleBatch, SamplingSettings
from cluster.config.placement import plan
from cluster.config.resolve import sampling_settings
from cluster.roles.learner import LearnerRole
from cluster.roles.learner_models import LearnerSpec
from cluster.training.parts.online_workers import learner_spec
from learners.engines.process_group import destroy_process_group
from learners.engines.settings import ModelSettings, OptimizerSettings, ZeroSettings
from learners.methods.method import LearnerSettings, Method, StepInputs, UpdateSettings, assemble
from learners.methods.presets import PRESETS, PreferenceSettings
from learners.policy import PolicyLearner
from learners.preference import PreferenceLearner
from tests.fixtures.columns import plain_logprobs, policy_engine, scores_of
from tests.fixtures.configs import GRPO, config
from tests.fixtures.tiny_model import make_tiny_model

EOS, LEAST, WARM = 1, 6, 0.7
PROMPTS = [Prompt(i, (2, 10 + i, 20), i) for i in range(16)]
BARRED = Barred((EOS,), LEAST)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A model that often wants to end."""
    made = make_tiny_model(tmp_path_factory.mktemp("models") / "tiny", tied=False)
    model = AutoModelForCausalLM.from_pretrained(made)
    with torch.no_grad():
        model.lm_head.weight[EOS] *= 2.0
    model.save_pretrained(made)
    return made


@pytest.fixture(scope="module")
def sampled(path):
    """Responses of at least LEAST tokens, of a model that would have ended some of them before."""
    engine = TorchEngine(EngineSettings(str(path), dtype="float32", max_model_len=64))
    sampling = SamplingSettings(temperature=WARM, max_tokens=12, min_tokens=LEAST, samples_per_prompt=2, seed=5)
    making = Generation(0, PROMPTS, sampling, None, 0.0)
    for request in making.requests():
        engine.add_request(request)
    while not making.done:
        for output in engine.step():
            making.absorb(output, 1)
    batch = making.result(0.0)[0]
    assert batch.lengths.min() > LEAST and (batch.lengths < 12).any()
    return batch


def first(sample, count):
    """Its first tokens."""
    names = ("token_ids", "logprobs", "turns")
    return dataclasses.replace(sample, **{name: getattr(sample, name)[:count] for name in names})


def gap(column, batch):
    return float(np.abs(assemble([column], len(batch.token_ids)) - batch.logprobs).mean())


def test_the_learner_s_log_probs_are_of_the_distribution_that_was_sampled(path, sampled):
    update = UpdateSettings(micro_batch_tokens=100)
    knows = PolicyLearner(policy_engine(path), Method(PRESETS["grpo"], temperature=WARM), update, BARRED)
    ignores = PolicyLearner(policy_engine(path), Method(PRESETS["grpo"], temperature=WARM), update)
    assert gap(knows.logprobs(sampled), sampled) < 1e-5
    assert gap(ignores.logprobs(sampled), sampled) > 1e-3, "barring a token that is never likely would show nothing"
    plain = plain_logprobs(policy_engine(path).module, sampled)[0].detach().numpy()
    own = assemble([knows.logprobs(sampled, temperature=1.0)], len(plain))
    assert np.abs(own - plain).max() < 1e-5, "a probe of weights compares the model's own distribution"


@pytest.mark.parametrize("name", ["ppo", "grpo", "gspo", "rloo"])
def test_the_first_update_is_at_ratio_one_and_without_mismatch(path, sampled, name):
    method = Method(PRESETS[name], temperature=WARM)
    learner = PolicyLearner(policy_engine(path), method, UpdateSettings(micro_batch_tokens=4096), BARRED)
    old = assemble([learner.logprobs(sampled)], len(sampled.token_ids))
    scores = scores_of(*np.random.default_rng(0).normal(size=len(sampled)))
    values = np.zeros_like(old)
    inputs = StepInputs(0, sampled, scores, kl_coef=0.05, reference=old, old=old, values=values)
    metrics = learner.update(inputs).metrics
    assert metrics["policy/ratio"] == pytest.approx(1.0, abs=1e-5) and metrics["policy/clip_fraction"] == 0.0
    assert metrics["policy/mismatch"] < 1e-5 and abs(metrics["kl/ref"]) < 1e-9 and abs(metrics["kl/ref_k1"]) < 1e-5
    assert np.isfinite(metrics["policy/entropy"]) and np.isfinite(metrics["policy/grad_norm"])


def test_an_end_token_is_not_pushed_where_it_was_barred(path, sampled):
    """A gradient of what could not be drawn would teach the model about a choice it never had."""
    cut = SampleBatch.from_samples([first(sample, LEAST) for sample in sampled])
    engine, seen = policy_engine(path), []
    engine.module.lm_head.weight.register_hook(seen.append)
    loss = dataclasses.replace(PRESETS["grpo"].loss, entropy_coef=0.1)
    method = Method(dataclasses.replace(PRESETS["grpo"], loss=loss), temperature=WARM)
    learner = PolicyLearner(engine, method, UpdateSettings(micro_batch_tokens=4096), BARRED)
    learner.update(StepInputs(0, cut, scores_of(*([1.0, 0.0] * 16)), reference=cut.logprobs))
    (head,) = seen
    assert head[EOS].abs().max() == 0.0 and head.abs().max() > 0.0


def test_reference_and_preference_learner_bar_alike(path, sampled):
    scorer = ReferenceScorer(
        str(path), dtype="float32", attention="sdpa", temperature=WARM, max_tokens=100, device="cpu", barred=BARRED
    )
    slots, values = scorer.logprobs(sampled)
    assert np.abs(values - sampled.logprobs[slots]).max() < 1e-4
    pairs = PreferenceLearner(policy_engine(path), PreferenceSettings(), UpdateSettings(), WARM, BARRED)
    assert gap(pairs.logprobs(sampled), sampled) < 1e-5


def spec_of(path, least):
    settings = LearnerSettings(
        ModelSettings(str(path), dtype="float32"),
        OptimizerSettings(lr=1e-3),
        ZeroSettings(),
        UpdateSettings(micro_batch_tokens=100),
        backend="torch",
    )
    trains = Method(PRESETS["grpo"], temperature=WARM)
    return LearnerSpec(trains, settings, None, str(path), "cpu", 60.0, temperature=WARM, min_tokens=least)


def test_a_rank_bars_the_end_tokens_of_its_model_for_policy_and_reference(path, sampled, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    role = LearnerRole(spec_of(path, LEAST), 0, 1)
    try:
        role.build(*role.rendezvous())
        assert gap(role.policy_logprobs(None, sampled), sampled) < 1e-5
        assert gap(role.reference_logprobs(sampled), sampled) < 1e-5
        assert gap(role.policy_logprobs(WARM, sampled), sampled) > 1e-3
    finally:
        destroy_process_group()


def test_a_run_tells_its_learner_the_least_length_that_its_engines_are_told():
    given = config(GRPO, "rollout.sampling.min_tokens=4")
    spec = learner_spec(given, Path("model"), plan(given, 2, 0.0), "object_store")
    assert spec.min_tokens == sampling_settings(given).min_tokens == 4
