"""What shapes the sampled distribution is followed by the learner, corrected, or refused: each setting is one of these
three."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path

import pytest

from actors.engines.interface import Request
from actors.types import SamplingSettings
from cluster.config import resolve
from cluster.config.rules.sampling import CORRECTED, FOLLOWED, SHAPELESS
from cluster.config.schema import Sampling
from learners.methods.presets import PRESETS
from tests.fixtures.configs import GRPO, PPO, config, problems

ROOT = Path(__file__).resolve().parents[4]
TABLES = (*FOLLOWED, *CORRECTED, *SHAPELESS)
OF_A_REQUEST = {"id", "prompt_tokens", "ignore_eos", "made"}
"""Which sequence, where it stands, and whether an end token ends it: what it draws stays as likely."""
OF_VLLM = {"extra_args", "detokenize", "ignore_eos", "stop_token_ids", "logprobs", "prompt_logprobs", "output_kind"}
"""What vLLM draws with, says back, and ends by."""


def test_every_setting_stands_in_one_table() -> None:
    """A field that is new here changes what is drawn or does not: say which, and what the learner makes of it."""
    assert len(set(TABLES)) == len(TABLES)
    assert {field.name for field in dataclasses.fields(SamplingSettings)} == set(TABLES)
    assert set(Sampling.model_fields) == set(TABLES) - {"seed"}, "the run's own seed"
    assert {field.name for field in dataclasses.fields(Request)} - OF_A_REQUEST <= set(TABLES)


def test_nothing_else_is_said_to_vllm() -> None:
    """Its penalties, bans, biases and grammars would shape what is drawn past every table."""
    source = ast.parse((ROOT / "actors/engines/vllm/engine.py").read_text())
    calls = [n for n in ast.walk(source) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "SamplingParams"]
    assert len(calls) == 2
    for call in calls:
        assert {keyword.arg for keyword in call.keywords} <= set(TABLES) | OF_VLLM


def test_the_values_that_keep_every_token_are_the_defaults() -> None:
    defaults = {field.name: field.default for field in dataclasses.fields(SamplingSettings)}
    assert {name: defaults[name] for name in CORRECTED} == CORRECTED
    assert {name: Sampling.model_fields[name].default for name in CORRECTED} == CORRECTED


@pytest.mark.parametrize("method", [*PRESETS, "online_dpo"])
@pytest.mark.parametrize(("override", "said"), [("top_p=0.5", "top_p 0.5"), ("top_k=7", "top_k 7")])
def test_what_the_learner_cannot_follow_is_refused_whatever_the_method(method: str, override: str, said: str) -> None:
    critic = ["critic={}"] if method == "ppo" else []
    found = problems(GRPO, f"algorithm={{name: {method}}}", f"rollout.sampling.{override}", *critic)
    (refused,) = [line for line in found if line.startswith("rollout.sampling: ")]
    # Correction is of policy-gradient methods: another is not told to set it.
    instead = "" if method == "online_dpo" else ", or set algorithm.correction.kind"
    assert refused == (
        f"rollout.sampling: {said} renormalise over tokens that the learner cannot see, so its log-probs would be of "
        f"another distribution; use top_p 1 and top_k 0{instead}"
    )


@pytest.mark.parametrize("correction", ["token_tis", "sequence_tis", "icepop"])
def test_any_correction_weighs_the_difference(correction: str) -> None:
    overrides = ["rollout.sampling={top_p: 0.9, top_k: 40, samples_per_prompt: 2, max_tokens: 16}"]
    assert problems(GRPO, *overrides, f"algorithm.correction.kind={correction}") == []
    ahead = ["rollout.schedule.kind=asynchronous"]
    assert problems(GRPO, *overrides, *ahead) == [], "stale samples are corrected by default"


@pytest.mark.parametrize("text", [GRPO, PPO])
def test_a_least_length_is_followed_by_the_learner_and_needs_no_correction(text: str) -> None:
    overrides = ("rollout.sampling.min_tokens=4", "rollout.sampling.temperature=0.7")
    assert problems(text, *overrides) == []
    sampling = resolve.sampling_settings(config(text, *overrides))
    assert (sampling.min_tokens, sampling.temperature) == (4, 0.7)
    assert resolve.evaluation_settings(config(text, *overrides)).min_tokens == 0, "an evaluation ends when it will"
