"""What a tool or environment wrote within a response is context, to every method alike: its numbers change nothing, it
is counted nowhere, and the policy's row sums are over the same tokens as the reference's."""

import ast
import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from actors.engines.probe import PROBE_TOKENS, worth_recording
from actors.response_mask import response_mask, row_sums
from actors.types import ENVIRONMENT_TURN
from cluster.training.parts.records import sample_records
from learners import critic, policy, preference, supervised
from learners.critic import CriticLearner
from learners.methods.method import Method, StepInputs, UpdateSettings
from learners.methods.presets import PREFERENCE_NAMES, PRESETS, PreferenceSettings
from learners.policy import PolicyLearner
from learners.preference import PreferenceLearner
from learners.replay import replay
from learners.supervised import SupervisedLearner
from tests.fixtures.columns import (
    batch_of,
    critic_engine,
    gradients_of,
    plain_logprobs,
    policy_engine,
    sample,
    scores_of,
)
from tests.fixtures.tiny_model import make_tiny_model

ROOT = Path(__file__).resolve().parents[3]
TOOL = 50
"""The id of every environment token here, and of no other."""
KTO_JUDGED, SFT, CRITIC = "kto on judged responses", "sft", "critic"
EVERY_METHOD = [*(f"preference {name}" for name in PREFERENCE_NAMES), KTO_JUDGED, SFT, CRITIC, *PRESETS]
NAN = float("nan")


def row(group, index, tokens):
    return sample(group, index, [5, 6], tokens, turns=[-1 if token == TOOL else 0 for token in tokens])


INSIDE = batch_of(
    row(0, 0, [7, TOOL, TOOL, 8, 9]),
    row(0, 1, [10, 11, TOOL]),
    row(1, 0, [TOOL, 12, TOOL, 13]),
    row(1, 1, [14, 15, 16, TOOL, 17]),
)
BEHIND = batch_of(
    row(0, 0, [7, 8, 9, TOOL, TOOL]),
    row(0, 1, [10, 11]),
    row(1, 0, [12, 13, TOOL, TOOL, TOOL, TOOL]),
    row(1, 1, [14, 15, 16, 17, TOOL]),
)
CUT = batch_of(row(0, 0, [7, 8, 9]), row(0, 1, [10, 11]), row(1, 0, [12, 13]), row(1, 1, [14, 15, 16, 17]))
SCORES = scores_of(1.0, 0.0, 0.25, 0.75)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


def column(batch, seed, fill):
    """Numbers of the policy's own tokens, in order, and `fill` on the environment's."""
    mask = response_mask(batch)
    values = np.full(len(mask), fill, np.float32)
    values[mask] = np.random.default_rng(seed).normal(-4.0, 0.4, mask.sum())
    return values


def inputs_of(batch, fill=0.0):
    named = {name: column(batch, seed, fill) for seed, name in enumerate(("old", "reference", "values"))}
    batch = dataclasses.replace(batch, logprobs=column(batch, 3, fill))
    more = {"kl_coef": 0.05, "kto_baseline": 0.2, "baseline": np.array([0.5, 0.5, 0.25, 0.25])}
    return StepInputs(0, batch, SCORES, **named, **more)


def learner_of(method, path):
    update = UpdateSettings(micro_batch_tokens=4096)
    if method == CRITIC:
        engine = critic_engine(path)
        with torch.no_grad():
            engine.module.value_head.weight.fill_(0.05)
        return engine, CriticLearner(engine, Method(PRESETS["ppo"], value_clip=None), update)
    engine = policy_engine(path)
    if method == SFT:
        return engine, SupervisedLearner(engine, update)
    if method in PRESETS:
        loss = dataclasses.replace(PRESETS[method].loss, horizon=8.0, entropy_coef=0.01, correction="token_tis")
        return engine, PolicyLearner(engine, Method(dataclasses.replace(PRESETS[method], loss=loss)), update)
    judged = method == KTO_JUDGED
    loss = "kto" if judged else method.removeprefix("preference ")
    return engine, PreferenceLearner(engine, PreferenceSettings(loss=loss, judged=judged), update)


def outcome(method, path, inputs):
    engine, learner = learner_of(method, path)
    seen = gradients_of(engine)
    metrics = learner.update(inputs).metrics
    return metrics, seen[0]


def poisoned_forward(monkeypatch, poison):
    """The policy's own log-probs and entropies of environment tokens are `poison`."""
    for module in (policy, preference, supervised):
        whole = module.token_logprobs

        def forward(model, packed, *rest, whole=whole):
            bad = torch.tensor(poison)
            return tuple(torch.where(packed.targets == TOOL, bad, found) for found in whole(model, packed, *rest))

        monkeypatch.setattr(module, "token_logprobs", forward)


@pytest.mark.parametrize("poison", [NAN, 1e4])
@pytest.mark.parametrize("method", EVERY_METHOD)
def test_whatever_numbers_environment_tokens_have_no_bit_changes(path, method, poison, monkeypatch):
    clean, gradient = outcome(method, path, inputs_of(INSIDE))
    poisoned_forward(monkeypatch, poison)
    found, moved = outcome(method, path, inputs_of(INSIDE, poison))
    assert found == clean and all(map(math.isfinite, found.values()))
    assert torch.equal(moved, gradient) and gradient.abs().max() > 0.0


@pytest.mark.parametrize("method", EVERY_METHOD)
def test_environment_tokens_behind_a_response_are_as_good_as_absent(path, method):
    """Nothing that is trained sees them: counted in any length or mean, they would be the only difference."""
    with_them, gradient = outcome(method, path, inputs_of(BEHIND, NAN))
    without, plain = outcome(method, path, inputs_of(CUT))
    assert with_them == pytest.approx(without, abs=1e-5, rel=1e-4)
    assert (gradient - plain).abs().max() < 1e-5 * max(1.0, float(plain.abs().max()))


@pytest.mark.parametrize(("loss", "smoothing"), [("sigmoid", 0.0), ("sigmoid", 0.2), ("robust", 0.0)])
def test_pairs_whose_reference_is_the_policy_give_log_two_with_environment_tokens_inside(path, loss, smoothing):
    engine = policy_engine(path)
    with torch.no_grad():
        reference = plain_logprobs(engine.module, INSIDE)[0].numpy().astype(np.float32)
    settings = PreferenceSettings(loss=loss, label_smoothing=smoothing)
    inputs = StepInputs(0, INSIDE, scores_of(*[0.0] * 4), reference=reference, old=reference)
    learner = PreferenceLearner(engine, settings, UpdateSettings(micro_batch_tokens=4096))
    assert learner.row_rewards(inputs).tolist() == [0.0] * 4
    metrics = learner.update(inputs).metrics
    assert metrics["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert metrics["rewards/chosen"] == pytest.approx(0.0, abs=1e-6)
    assert metrics["rewards/rejected"] == pytest.approx(0.0, abs=1e-6)


def test_row_sums_counts_and_what_follows_from_them_are_over_own_tokens():
    batch = batch_of(row(0, 0, [7, TOOL, 8]), row(0, 1, [9, TOOL, TOOL]), row(1, 0, [TOOL]))
    old = np.array([-1.0, NAN, -2.0, -3.0, NAN, NAN, NAN], np.float32)
    reference = np.array([-2.0, 1e4, -2.5, -3.5, NAN, 1e4, NAN], np.float32)
    assert row_sums(old, batch).tolist() == [[-3.0, 2.0], [-3.0, 1.0], [0.0, 0.0]]
    inputs = StepInputs(0, batch, scores_of(1.0, 0.0, 0.0), reference=reference, old=old)
    gaps = PreferenceLearner(None, PreferenceSettings(beta=2.0), UpdateSettings())
    assert gaps.row_logprobs(inputs).tolist() == row_sums(old, batch).tolist()
    assert gaps.row_rewards(inputs).tolist() == [2.0 * 1.5, 2.0 * 0.5, 0.0]
    assert gaps.kto_baseline(inputs) == pytest.approx((1.5 + 0.5 + 0.0) / 3)
    averaged = PreferenceLearner(None, PreferenceSettings(loss="simpo", beta=2.0), UpdateSettings())
    assert averaged.row_rewards(inputs).tolist() == [2.0 * -1.5, 2.0 * -3.0, 0.0]


def test_people_are_shown_no_numbers_of_environment_tokens_and_a_mean_over_the_others(path):
    inputs = inputs_of(INSIDE)
    _, learner = learner_of("ppo", path)
    (shown,) = learner.update(inputs, show_rows=(0,)).details
    mask = [True, False, False, True, True]
    for numbers in (shown.logprobs, shown.token_kl, shown.values):
        assert np.isfinite(numbers).tolist() == mask
    assert (shown.advantages != 0.0).tolist() == mask

    class Text:
        def prompt(self, prompt_id, group):
            return type("Prompt", (), {"data": {"prompt": "q"}})

        def decode(self, ids, skip_special_tokens=False):
            return " ".join(map(str, ids))

    (record,) = sample_records(1, [shown], SCORES, Text(), Text())
    assert record.kl == pytest.approx(float(shown.token_kl[mask].mean())) and record.tokens[1] == str(TOOL)
    (side,) = learner_of("preference sigmoid", path)[1].update(inputs, show_rows=(1,)).details
    assert side.advantages.tolist() == [-1.0, -1.0, 0.0] and np.isnan(side.logprobs[2])


def test_a_replay_counts_as_not_finite_what_a_method_would_have_seen(path):
    _, learner = learner_of("grpo", path)
    inputs = inputs_of(INSIDE, NAN)
    inputs.reference[0] = NAN
    found = replay(learner, inputs).not_finite
    own = int(response_mask(INSIDE).sum())
    assert found["log-probs of the engine"] == (0, own) and found["log-probs of the reference"] == (1, own)
    assert found["scores"] == (0, 4)


def test_a_probe_counts_no_doubt_on_environment_tokens():
    rows = [row(g, 0, [7, TOOL] * 20) for g in range(60)]
    batch = batch_of(*rows)
    logprobs = np.where(response_mask(batch), math.log(0.9), NAN).astype(np.float32)
    # 2 nats of doubt a row from its 20 own tokens: 32 are passed with the 16th, before 1,024 tokens are
    found = worth_recording(dataclasses.replace(batch, logprobs=logprobs), 2)
    assert found == list(range(17)) and 40 * len(found) < PROBE_TOKENS


def test_one_function_alone_says_which_tokens_are_the_environments():
    """Who reads `turns` or the mark by himself will, some day, read it otherwise."""
    may = {"actors/types.py", "actors/response_mask.py", "actors/data/batches.py"}
    found = set()
    for package in ("actors", "learners", "cluster", "serve"):
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                read = isinstance(node, ast.Attribute) and node.attr == "turns" and isinstance(node.ctx, ast.Load)
                if read or (isinstance(node, ast.Name) and node.id == "ENVIRONMENT_TURN"):
                    found.add(file.relative_to(ROOT).as_posix())
    assert found <= may and ENVIRONMENT_TURN == -1
    assert critic.build_experience is policy.build_experience, "the critic's mask is the policy's"
