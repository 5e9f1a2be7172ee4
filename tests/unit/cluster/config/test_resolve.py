"""From config to role settings: presets as METHODS has them, overrides on top, nothing lost on the way."""

import dataclasses

import pytest

from actors.models.lora import LoraSettings
from cluster.config import resolve
from learners.methods.preference_losses import LOSSES
from learners.methods.presets import PREFERENCE_PRESETS, PRESETS, REFERENCE_FREE
from tests.fixtures.configs import DPO, GRPO, PPO, config

PLAIN_GRPO = GRPO.replace("{name: grpo, kl: {place: none}}", "grpo")


def test_a_method_s_name_alone_gives_its_paper_s_choices():
    grpo = resolve.resolve_preset(config(PLAIN_GRPO))
    assert (grpo.advantage, grpo.kl_place, grpo.kl_kind, grpo.kl_coef) == ("grpo", "loss", "k3", 0.04)
    assert (grpo.loss.kl_kind, grpo.loss.kl_coef, grpo.loss.aggregation) == ("k3", 0.04, "seq-mean-token-mean")
    ppo = resolve.resolve_preset(config(PPO))
    assert (ppo.advantage, ppo.whiten, ppo.kl_place, ppo.kl_kind, ppo.kl_coef) == ("gae", True, "reward", "k1", 0.05)
    assert (ppo.loss.kl_kind, ppo.loss.kl_coef, ppo.loss.aggregation) == (None, 0.0, "token-mean")


def test_each_field_overrides_one_choice_and_leaves_the_others():
    found = resolve.resolve_preset(config(PPO, "algorithm.loss.clip_high=0.28", "algorithm.kl.coef=0.02"))
    assert (found.loss.clip_low, found.loss.clip_high) == (0.2, 0.28)
    assert (found.kl_place, found.kl_coef) == ("reward", 0.02)
    found = resolve.resolve_preset(config(PLAIN_GRPO, "algorithm={name: grpo, kl: {kind: k2}, loss: {dual_clip: 3}}"))
    assert (found.loss.kl_kind, found.loss.kl_coef, found.loss.dual_clip) == ("k2", 0.04, 3.0)


def test_a_clip_of_zero_is_a_choice_and_not_unset():
    assert resolve.resolve_preset(config(PPO, "algorithm.loss.clip_low=0")).loss.clip_low == 0.0


def test_without_a_place_there_is_no_kl_anywhere_and_no_reference():
    found = resolve.resolve_method(config(GRPO))
    assert (found.preset.kl_place, found.preset.kl_coef, found.preset.loss.kl_kind) == ("none", 0.0, None)
    assert found.needs_reference is False
    assert resolve.resolve_method(config(PPO)).needs_reference is True


def test_moving_the_kl_into_the_loss_takes_it_out_of_the_reward():
    found = resolve.resolve_preset(config(PPO, "algorithm.kl.place=loss"))
    assert (found.kl_place, found.loss.kl_kind, found.loss.kl_coef) == ("loss", "k1", 0.05)


def test_training_divides_logits_by_the_sampling_temperature():
    assert resolve.resolve_method(config(GRPO, "rollout.sampling.temperature=0.7")).temperature == 0.7


def test_the_length_constant_is_the_token_limit():
    assert resolve.resolve_preset(config(GRPO)).loss.horizon == 16.0


def test_the_schedule_counts_optimiser_steps_not_training_steps():
    found = config(GRPO, "steps=10", "learner.epochs=2", "learner.minibatches=4")
    assert resolve.optimizer_steps(found, 10) == 80
    assert resolve.policy_settings(found, "/m", 80).optimizer.total_steps == 80


def test_evaluation_draws_one_greedy_response_from_seeds_of_its_own():
    found = config(GRPO, "seed=7", "rollout.sampling.stop=[END]")
    training, evaluation = resolve.sampling_settings(found), resolve.evaluation_settings(found)
    assert (training.samples_per_prompt, training.temperature, training.seed) == (2, 1.0, 7)
    assert (evaluation.samples_per_prompt, evaluation.temperature) == (1, 0.0)
    assert evaluation.seed != training.seed
    assert (evaluation.max_tokens, evaluation.stop) == (16, ("END",))
    assert resolve.evaluation_settings(config(GRPO, "evaluation.max_tokens=8")).max_tokens == 8


def test_the_cache_is_given_in_gigabytes_and_kept_in_bytes():
    assert resolve.engine_settings(config(GRPO, "rollout.kv_cache_gb=0.5"), "/m").kv_cache_bytes == 536_870_912


def test_the_critic_has_its_own_optimiser_zero_and_depth():
    found = config(PPO, "critic={layers: 6, zero: {stage: 1}, optimizer: {lr: 2e-5, head_lr: 3e-4}}")
    critic, policy = resolve.critic_settings(found, "/c", 9), resolve.policy_settings(found, "/p", 9)
    assert (critic.model.path, critic.model.layers, critic.zero.stage) == ("/c", 6, 1)
    assert (critic.optimizer.lr, critic.optimizer.head_lr) == (2e-5, 3e-4)
    assert (policy.model.path, policy.model.layers, policy.zero.stage, policy.optimizer.lr) == ("/p", None, 0, 1e-6)


def test_a_critic_s_settings_are_refused_where_the_config_has_none():
    with pytest.raises(ValueError, match="this config has no critic section"):
        resolve.critic_settings(config(GRPO), "/c", 1)


def test_the_default_critic_learns_ten_times_as_fast_as_the_default_policy():
    found = config(PPO)
    assert resolve.critic_settings(found, "/c", 1).optimizer.lr == pytest.approx(1e-5)
    assert resolve.policy_settings(found, "/p", 1).optimizer.lr == pytest.approx(1e-6)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_is_an_algorithm_and_breaks_no_rule_of_its_own(name):
    text = (PPO if PRESETS[name].critic else GRPO).replace("{name: grpo, kl: {place: none}}", name)
    found = resolve.resolve_preset(config(text.replace("algorithm: ppo", f"algorithm: {name}")))
    own = PRESETS[name]
    assert dataclasses.replace(found, loss=own.loss) == own
    settings = dataclasses.replace(own.loss, horizon=16.0)
    assert found.loss == settings


def test_rloo_s_score_holds_the_rewards_kl_under_any_name_and_only_then():
    text = GRPO.replace("{name: grpo, kl: {place: none}}", "rloo")
    assert resolve.resolve_preset(config(text)).score_includes_kl
    assert not resolve.resolve_preset(config(text, "algorithm.kl.place=loss")).score_includes_kl
    mixed = config(GRPO, "algorithm={name: grpo, advantage: rloo, kl: {place: reward, kind: k1}}")
    assert resolve.resolve_preset(mixed).score_includes_kl


@pytest.mark.parametrize("name", sorted(PREFERENCE_PRESETS.keys() - {"online_dpo"}))
def test_a_preference_method_s_name_alone_gives_its_settings(name):
    found = config(DPO.replace("{name: dpo, preference: {loss: sigmoid}}", name))
    assert resolve.preference_settings(found) == PREFERENCE_PRESETS[name]
    assert not resolve.needs_reference(found)  # offline its log-probs are stored, no second model is loaded
    assert not found.algorithm.online


def test_pairs_made_online_are_compared_with_a_reference_that_is_loaded():
    found = config(GRPO, "algorithm={name: online_dpo}")
    assert resolve.training(found) == PREFERENCE_PRESETS["online_dpo"]
    assert resolve.needs_reference(found) and found.algorithm.online


def test_the_table_of_losses_without_a_reference_is_the_losses_own():
    assert {name for name, method in LOSSES.items() if not method.reference} == set(REFERENCE_FREE)


def test_preference_settings_come_from_their_section():
    found = resolve.preference_settings(
        config(DPO, "algorithm.preference={loss: robust, beta: 0.3, label_smoothing: 0.1}")
    )
    assert (found.loss, found.beta, found.label_smoothing) == ("robust", 0.3, 0.1)


def test_an_adapter_is_the_policy_s_and_its_engine_s_and_never_the_critic_s():
    given = config(PPO, "model.lora={rank: 8, alpha: 4, targets: [q_proj]}", "seed=11")
    expected = LoraSettings(rank=8, alpha=4.0, targets=("q_proj",), seed=11, export="merged")
    assert resolve.policy_settings(given, "/m", 1).model.lora == expected
    assert resolve.engine_settings(given, "/m").lora == expected
    assert resolve.critic_settings(given, "/m", 1).model.lora is None
    assert resolve.lora_settings(config(PPO, "model.lora={}")).targets is None
    assert resolve.lora_settings(config(PPO)) is None


def test_with_an_adapter_no_second_model_is_loaded_for_a_method_that_needs_a_reference():
    assert resolve.needs_reference(config(PPO))
    given = config(PPO, "model.lora={}")
    assert not resolve.needs_reference(given) and resolve.resolve_method(given).needs_reference


@pytest.mark.parametrize(("rank", "reserved"), [(1, 1), (4, 8), (16, 16), (17, 32), (512, 512)])
def test_the_engine_reserves_the_next_rank_it_knows(rank, reserved):
    assert LoraSettings(rank=rank, alpha=1.0).engine_rank == reserved


@pytest.mark.parametrize(
    ("overrides", "factor"),
    [
        ([], 5.0),
        (["recovery.slow_factor=8"], 8.0),
        (["recovery.slow_factor=null"], None),
        (["deterministic=true"], None),
        (["rollout.sleep_level=1", "learner.gpus_per_rank=0.5", "rollout.gpu_memory_utilization=0.5"], None),
    ],
)
def test_nobody_is_slow_where_bits_count_or_engines_sleep(overrides, factor):
    assert resolve.recovery_limits(config(GRPO, *overrides)).slow_factor == factor
