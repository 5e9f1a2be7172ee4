"""Rules across sections: each problem names its path, the rule, the value and what to do; an ignored key is one."""

import pytest

from cluster.config.resolve import admission, correction_kind, max_staleness, resolve_preset
from cluster.pool.admission import Admission
from tests.fixtures.configs import DPO, GRPO, PPO, config, problems

TASK = "data={reasoning_gym: {task: chain_sum, size: 10}}"


@pytest.mark.parametrize("text", [GRPO, PPO, DPO])
def test_the_smallest_recipes_break_no_rule(text):
    assert problems(text) == []


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["data.path=null", "data.reasoning_gym={task: chain_sum}", "data.subset=all"],
            "data.subset: is of a hub data set, this is a task; remove it",
        ),
        (["data.path=null"], "data: needs exactly one of data.path and data.reasoning_gym, got neither"),
        (
            ["data.reasoning_gym={task: chain_sum}"],
            "data: needs exactly one of data.path and data.reasoning_gym, got both",
        ),
        (
            [TASK, "data.messages_column=chat"],
            "data.messages_column: reasoning_gym tasks have questions, not messages; remove it",
        ),
        (
            ["data.messages_column=chat", "data.prompt_column=text"],
            "data.prompt_column: data.messages_column is read instead, got 'text'; remove one",
        ),
        (
            [TASK, "data.split=test"],
            "data.split: reasoning_gym tasks are generated and have none, got 'test'; remove it",
        ),
        (
            [TASK, "data.prompt_column=q"],
            "data.prompt_column: reasoning_gym tasks are generated and have none, got 'q'; remove it",
        ),
        (
            ["model.attention=eager"],
            "model.attention: packed samples need sdpa's boolean mask, got eager; set it to sdpa",
        ),
    ],
)
def test_data_and_model(overrides, expected):
    assert problems(GRPO, *overrides) == [expected]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["reward={}"], "reward: grpo needs a reward: add reward.functions, reward.models or reward.judges"),
        (
            ["reward.functions.correct.weight=0"],
            "reward: every weight is 0, so all samples score the same; give one a weight",
        ),
        (
            ["reward.functions.mean={function: exact_match}"],
            "reward.functions.mean: the name stands for a metric of its own (mean, std, failed, missing_eos, reward "
            "do)",
        ),
        (
            ["reward.functions.a/b={function: exact_match}"],
            "reward.functions.a/b: a reward's name is part of a metric's name and has no slash; rename it",
        ),
        (
            ["reward.models.correct={path: m}"],
            "reward.models.correct: a reward function has this name too; rename one",
        ),
    ],
)
def test_rewards(overrides, expected):
    found = problems(GRPO, *overrides)
    assert expected in found


@pytest.mark.parametrize(
    ("text", "overrides", "expected"),
    [
        (
            PPO,
            ["critic=null"],
            "critic: GAE needs values: add a critic section (critic: {}), or choose a group advantage",
        ),
        (GRPO, ["critic={}"], "critic: the grpo advantage has no use for a critic; remove the section"),
        (
            GRPO,
            ["rollout.sampling.samples_per_prompt=1"],
            "rollout.sampling.samples_per_prompt: the grpo advantage compares samples of one prompt: give at least "
            "2, got 1",
        ),
        (
            GRPO,
            ["algorithm.gae_lambda=0.95"],
            "algorithm.gae_lambda: acts in gae only, not in the grpo advantage, got 0.95; remove it",
        ),
        (
            GRPO,
            ["algorithm.preference={beta: 0.2}"],
            "algorithm.preference: is of methods that compare responses, grpo has no use for it; remove it",
        ),
        (
            GRPO,
            ["algorithm.correction={kind: icepop, floor: 3.0}"],
            "algorithm.correction.floor: must lie below algorithm.correction.cap (2), got 3",
        ),
    ],
)
def test_advantages(text, overrides, expected):
    assert problems(text, *overrides) == [expected]


@pytest.mark.parametrize(
    ("text", "overrides", "expected"),
    [
        (
            GRPO,
            ["algorithm.kl.place=reward"],
            "algorithm.kl.place: the grpo advantage takes scores without the token KL, got reward; use loss or none",
        ),
        (
            PPO,
            ["algorithm.advantage=dr_grpo", "critic=null"],
            "algorithm.kl.place: the dr_grpo advantage takes scores without the token KL, got reward (ppo's own); "
            "use loss "
            "or none",
        ),
        (
            GRPO,
            ["algorithm.kl.coef=0.1"],
            "algorithm.kl.coef: there is no KL for it to act on, got 0.1; set algorithm.kl.place or remove it",
        ),
        (
            GRPO,
            ["algorithm.kl.target=6"],
            "algorithm.kl.target: there is no KL for it to act on, got 6.0; set algorithm.kl.place or remove it",
        ),
        (
            PPO,
            ["algorithm.kl.coef=0"],
            "algorithm.kl.coef: 0 has a reference computed whose KL changes nothing; set algorithm.kl.place to none, "
            "or a "
            "coefficient above 0, got 0",
        ),
        (
            PPO,
            ["algorithm.kl={coef: 0, target: 6}", "evaluation.kl_bound=1"],
            "algorithm.kl.coef: the adaptive controller multiplies it, so it must start above 0 to reach a target, "
            "got 0",
        ),
        (
            GRPO,
            ["algorithm.kl={place: loss, coef: 0.1, target: 6}"],
            "algorithm.kl.target: the adaptive controller moves the coefficient of a KL in the reward, not in the "
            "loss, got 6; set algorithm.kl.place to reward where the method takes it, or remove it",
        ),
        (
            GRPO,
            ["evaluation.kl_bound=0.2"],
            "evaluation.kl_bound: there is no reference to measure kl/ref against, got 0.2; set algorithm.kl.place or "
            "remove it",
        ),
    ],
)
def test_the_kl_acts_where_its_settings_say_or_is_refused(text, overrides, expected):
    samples = ["rollout.sampling.samples_per_prompt=2"]
    assert problems(text, *samples, *overrides) == [expected]


def test_a_kl_that_is_only_watched_needs_no_weight():
    assert problems(PPO, "algorithm.kl.coef=0", "evaluation.kl_bound=0.5") == []


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["rollout.sampling.max_tokens=64"],
            "rollout.sampling.max_tokens: leaves no room for a prompt in model.max_length (64), got 64",
        ),
        (["rollout.sampling.min_tokens=17"], "rollout.sampling.min_tokens: must be at most max_tokens (16), got 17"),
        (
            ["rollout.sampling.min_tokens=16", "rollout.sampling.stop=[x]"],
            "rollout.sampling.stop: min_tokens equals max_tokens (16), so no stop string acts; lower min_tokens",
        ),
        (
            ["rollout.sampling.stop=['']"],
            "rollout.sampling.stop: an empty stop string would end every response at once; remove it",
        ),
        (
            ["rollout.sampling.top_p=0.9", "rollout.sampling.top_k=40"],
            "rollout.sampling: top_p 0.9 and top_k 40 renormalise over tokens that the learner cannot see, so its "
            "log-probs "
            "would be of another distribution; use top_p 1 and top_k 0, or set algorithm.correction.kind",
        ),
        (
            [
                "rollout.engine=torch",
                "rollout.tensor_parallel=2",
            ],
            "rollout.tensor_parallel: the torch engine runs on one device, got 2; use vllm or 1",
        ),
        (
            ["learner.gpus_per_rank=0.5", "rollout.gpu_memory_utilization=0.85"],
            "rollout.gpu_memory_utilization: a worker that shares its GPU with a learner rank (learner.gpus_per_rank "
            "0.5) "
            "may take at most 0.5 of its memory, got 0.85",
        ),
    ],
)
def test_sampling_and_rollout(overrides, expected):
    assert problems(GRPO, *overrides) == [expected]


def test_sampling_from_a_part_of_the_vocabulary_is_allowed_under_importance_correction():
    assert problems(GRPO, "rollout.sampling.top_p=0.9", "algorithm.correction.kind=token_tis") == []


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["learner.minibatches=5"], "learner.minibatches: must be at most rollout.prompts_per_step (4), got 5"),
        (
            ["learner.backend=torch", "learner.ranks=2"],
            "learner.backend: torch is the plain twin for one rank without ZeRO; use deepspeed",
        ),
        (
            ["learner.zero={stage: 2, offload_parameters: cpu}"],
            "learner.zero.offload_parameters: needs stage 3, got stage 2",
        ),
        (
            ["learner.zero.offload_optimizer=cpu"],
            "learner.zero.offload_optimizer: needs stage 1, 2 or 3, got stage 0",
        ),
        (
            ["learner.zero={stage: 3, offload_optimizer: nvme}"],
            "learner.zero.offload_optimizer: the learner keeps its state in memory: use cpu or none, got nvme",
        ),
        (
            ["learner.gpus_per_rank=2"],
            "learner.gpus_per_rank: a rank runs on one GPU or a part of it: give at most 1, got 2; add learner.ranks",
        ),
        (
            ["learner.optimizer.head_lr=1e-3"],
            "learner.optimizer.head_lr: a policy has no such head; set critic.optimizer.head_lr",
        ),
        (
            ["steps=3", "learner.epochs=2", "learner.optimizer.freeze_steps=6"],
            "learner.optimizer.freeze_steps: must be less than the run's 6 optimiser steps, or nothing is learned, "
            "got 6",
        ),
        (
            ["steps=10", "learner.optimizer.freeze_steps=4", "learner.optimizer.warmup_steps=6"],
            "learner.optimizer.warmup_steps: must end before the run's 10 optimiser steps do (freeze_steps 4 come "
            "first), "
            "got 6",
        ),
    ],
)
def test_the_learner(overrides, expected):
    assert problems(GRPO, *overrides) == [expected]


def test_the_critic_s_zero_and_schedule_are_held_to_the_same_rules():
    found = problems(PPO, "critic.zero.offload_optimizer=cpu", "critic.optimizer.freeze_steps=100")
    assert [line.partition(":")[0] for line in found] == [
        "critic.zero.offload_optimizer",
        "critic.optimizer.freeze_steps",
    ]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["evaluation.every_steps=5"], "evaluation.every_steps: needs held-out prompts, got 5: set data.heldout"),
        (
            ["data.heldout=10", "evaluation.prompts=20"],
            "evaluation.prompts: must be at most data.heldout (10), got 20",
        ),
        (["evaluation.patience=3"], "evaluation.patience: counts evaluations, got 3: set evaluation.every_steps"),
        (["evaluation.metric=accuracy"], "evaluation.metric: must be one of correct, reward, got 'accuracy'"),
        (
            ["evaluation.max_tokens=64"],
            "evaluation.max_tokens: leaves no room for a prompt in model.max_length (64), got 64",
        ),
        (["ray.address=gpu-box"], "ray.address: must be local, auto or host:port, got 'gpu-box'"),
        (
            ["ray={address: auto, num_cpus: 4}"],
            "ray.num_cpus: is for a Ray started here, ray.address is auto, got 4; remove it",
        ),
    ],
)
def test_evaluation_and_ray(overrides, expected):
    assert problems(GRPO, *overrides) == [expected]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["reward.functions.correct={function: exact_match}"],
            "reward: dpo learns from stored pairs and has no use for a reward; remove the section",
        ),
        (
            ["rollout.workers=2"],
            "rollout: dpo learns from stored pairs and has no use for a rollout; remove the section",
        ),
        (["critic={}"], "critic: dpo learns from stored pairs and has no use for a critic; remove the section"),
        (
            ["algorithm.kl.coef=0.1"],
            "algorithm.kl: is of policy-gradient methods, dpo has no use for it; remove it",
        ),
        (["learner.epochs=2"], "learner.epochs: dpo takes steps instead, got 2; remove it"),
        (
            ["evaluation.kl_bound=1"],
            "evaluation.kl_bound: dpo is evaluated on held-out pairs and generates nothing; remove it",
        ),
        (
            ["data.suffix=please"],
            "data.suffix: dpo takes prompts as they stand in the pairs; put it into the data and remove it",
        ),
        (
            [TASK, "data.heldout=10"],
            "data.heldout: must be less than data.reasoning_gym.size (10), got 10",
        ),
        (
            ["algorithm.preference={loss: ipo, label_smoothing: 0.1}"],
            "algorithm.preference.label_smoothing: acts in sigmoid and robust and exo_pair only, not in ipo, got 0.1; "
            "remove it",
        ),
    ],
)
def test_dpo_refuses_what_it_would_ignore(overrides, expected):
    assert problems(DPO, *overrides) == [expected]


@pytest.mark.parametrize(
    ("text", "overrides", "expected"),
    [
        (
            GRPO,
            ["algorithm={name: cispo, loss: {dual_clip: 3}}"],
            "algorithm.loss.dual_clip: acts in the clip loss only, got 3; remove it",
        ),
        (
            GRPO,
            ["algorithm={name: cispo, loss: {ratio: sequence_mean}}"],
            "algorithm.loss.ratio: cispo weighs each token by its own, got sequence_mean; remove it",
        ),
        (
            GRPO,
            ["algorithm.resample.rounds=3"],
            "algorithm.resample.rounds: acts with flat_groups only, got 3; remove it",
        ),
        (
            GRPO,
            ["algorithm={name: remax, gamma: 0.9}"],
            "algorithm.gamma: acts in gae and reinforce_pp only, not in the remax advantage, got 0.9; remove it",
        ),
        (
            GRPO,
            ["algorithm={name: opo, kl: {place: reward}}"],
            "algorithm.kl.place: the opo advantage takes scores without the token KL, got reward; use loss or none",
        ),
        (
            DPO,
            ["algorithm={name: kto, preference: {pairs_per_step: 1}}"],
            "algorithm.preference.pairs_per_step: kto compares with the other prompts' responses of a step: give at "
            "least 2, got 1",
        ),
        (
            DPO,
            ["algorithm={name: sft, preference: {beta: 0.5}}"],
            "algorithm.preference: is of methods that compare responses, sft has no use for it; remove it",
        ),
        (
            DPO,
            ["algorithm=sft", "data.overlong=truncate_left"],
            "data.overlong: a conversation cut at its beginning is another one: use refuse or drop, got truncate_left",
        ),
        (
            DPO,
            ["algorithm={name: dpo, sft: {rows_per_step: 4}}"],
            "algorithm.sft: is of sft, dpo has no use for it; remove it",
        ),
        (
            GRPO,
            ["data.completion_column=answer"],
            "data.completion_column: is of sft's rows without messages and of judged responses, got 'answer'; remove "
            "it",
        ),
        (
            DPO,
            ["algorithm={name: simpo, preference: {nll_coef: 0.5}}"],
            "algorithm.preference.nll_coef: acts in cpo only, not in simpo, got 0.5; remove it",
        ),
    ],
)
def test_a_method_refuses_a_field_it_does_not_use(text, overrides, expected):
    assert expected in problems(text, *overrides)


def test_every_rule_s_message_says_what_to_do():
    """A sentence with an imperative: whoever reads it knows the next step."""
    found = [
        *problems(PPO, "algorithm.kl.coef=0", "learner.zero.offload_optimizer=cpu", "rollout.sampling.top_k=5"),
        *problems(GRPO, "critic={}", "reward.functions.correct.weight=0", "evaluation.every_steps=5"),
    ]
    assert len(found) == 6
    for line in found:
        assert any(word in line for word in ("set ", "needs ", "use ", "remove ", "give ", "must ", "add ")), line


LABELLED = "data.labels.column=label"
KTO = "algorithm={name: kto}"
REWARD = "algorithm={name: reward_model}"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            [LABELLED],
            "data.labels.column: single judged responses are for kto and reward_model, dpo cannot learn from them",
        ),
        (
            [KTO, LABELLED, "data.labels.range=[0, 1]"],
            "data.labels.range: bounds ratings: only reward_model with data.labels.column has them",
        ),
        (
            [REWARD, LABELLED, "data.labels.range=[5, 1]"],
            "data.labels.range: the least rating must be below the greatest, got 5 and 1",
        ),
        (
            [KTO, "data.labels.margin_column=m"],
            "data.labels.margin_column: margins are for reward_model on pairs; remove it",
        ),
        (
            [REWARD, LABELLED, "algorithm.reward_model.centre_coef=0.5"],
            "algorithm.reward_model.centre_coef: acts on pairs, ratings fix the centre, got 0.5; remove it",
        ),
        (
            ["algorithm={name: kto, preference: {loss: hinge}}", LABELLED],
            "algorithm.preference.loss: hinge compares two responses; single judged ones need kto",
        ),
        (
            ["algorithm={name: dpo, reward_model: {rows_per_step: 3}}"],
            "algorithm.reward_model: is of reward_model, dpo has no use for it; remove it",
        ),
    ],
)
def test_what_people_said_of_responses(overrides, expected):
    assert expected in problems(DPO, *overrides)


def test_judged_responses_and_ratings_are_accepted_where_they_are_learned_from():
    assert problems(DPO, KTO, LABELLED) == []
    assert problems(DPO, REWARD, LABELLED, "data.labels.range=[1, 5]", "learner.optimizer.head_lr=0.1") == []
    assert problems(DPO, REWARD, "data.labels.margin_column=m") == []


AHEAD = "rollout.schedule={kind: asynchronous, max_staleness: 2}"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["rollout.schedule={max_staleness: 2}"],
            "rollout.schedule.max_staleness: is 0 by definition where the schedule is synchronous, got 2; remove it or "
            "choose partial or asynchronous",
        ),
        (
            ["rollout.schedule={kind: one_step_off, max_staleness: 2}"],
            "rollout.schedule.max_staleness: is 1 by definition where the schedule is one_step_off, got 2; remove it "
            "or choose partial or asynchronous",
        ),
        (
            ["rollout.schedule={kind: asynchronous, over_provision: 1.25}"],
            "rollout.schedule.over_provision: acts where the schedule is partial only, got 1.25; remove it",
        ),
        (
            ["algorithm={name: online_dpo}", AHEAD],
            "rollout.schedule.kind: online_dpo is synchronous, got asynchronous; remove it",
        ),
        (
            ["algorithm=remax", "rollout.sampling.samples_per_prompt=1", AHEAD],
            "rollout.schedule.kind: remax needs each prompt's greedy response under the weights of its samples, got "
            "asynchronous; use synchronous",
        ),
        (
            ["deterministic=true", AHEAD],
            "rollout.schedule.kind: deterministic runs depend on no timing, and asynchronous does; use synchronous",
        ),
        (
            ["steps=2", AHEAD],
            "rollout.schedule.max_staleness: must be less than the run's 2 steps, or nothing ever waits for new "
            "weights, got 2",
        ),
    ],
)
def test_a_schedule_that_cannot_run_ahead_is_refused(overrides, expected):
    assert expected in problems(GRPO, *overrides)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["rollout.autoscale={min: 3, max: 2}"], "rollout.autoscale.min: must be at most max (2), got 3"),
        (
            ["rollout.autoscale={min: 2, max: 4}", "rollout.workers=1"],
            "rollout.workers: is where it begins: give 2 to 4, got 1",
        ),
        (
            ["rollout.autoscale={max: 4, target_idle: 0.0}"],
            "rollout.autoscale.target_idle: where generating and learning take turns the learner always waits: give a "
            "share above 0, got 0",
        ),
        (
            ["rollout.autoscale={max: 4}", "deterministic=true"],
            "rollout.autoscale: deterministic runs depend on no timing, and this decides by it; remove one",
        ),
    ],
)
def test_an_autoscaler_that_cannot_hold_its_target_is_refused(overrides, expected):
    assert expected in problems(GRPO, *overrides)


def test_a_schedule_that_may_be_stale_corrects_its_samples_unless_told_otherwise():
    assert correction_kind(config(GRPO)) == "none" and max_staleness(config(GRPO)) == 0
    ahead = config(GRPO, AHEAD)
    assert correction_kind(ahead) == resolve_preset(ahead).loss.correction == "token_tis" and max_staleness(ahead) == 2
    assert max_staleness(config(GRPO, "rollout.schedule.kind=one_step_off")) == 1
    partial = config(GRPO, "rollout.schedule={kind: partial, over_provision: 1.25}", "rollout.prompts_per_step=8")
    assert admission(partial) == Admission(batch=8, max_staleness=1, ahead=2)
    assert correction_kind(config(GRPO, AHEAD, "algorithm.correction.kind=none")) == "none"
    config(GRPO, AHEAD, "rollout.sampling.top_p=0.9")


ONLINE_DPO = "algorithm={name: online_dpo}"
JUDGE = "reward.judges={better: {function: 'm:f'}}"
COST = "reward.safety={functions: {length: {function: length_penalty}}}"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["rollout.sampling.samples_per_prompt=1", "algorithm={name: ppo}", "critic={}", JUDGE],
            "reward.judges.better: a judge compares samples of one prompt: set rollout.sampling.samples_per_prompt to "
            "at least 2",
        ),
        (
            ["reward.judges={better: {}}"],
            "reward.judges.better: needs exactly one of path and function, got neither",
        ),
        (
            ["reward.judges={better: {path: p, template: 'only {prompt}'}}"],
            "reward.judges.better.template: the judge must see {first}, {second}; add them",
        ),
        (
            ["reward.judges={better: {path: p, template: '{prompt} {first} {second} as {json}'}}"],
            "reward.judges.better.template: nothing fills {json}; write {{ and }} for braces of the text itself",
        ),
        (
            ["reward.judges={better: {path: p, template: '{prompt} {first} {second} {'}}"],
            "reward.judges.better.template: its braces do not pair (Single '{' encountered in format string); write {{ "
            "and }} for braces of the text itself",
        ),
        (
            ["reward.judges={correct: {function: 'm:f'}}"],
            "reward.judges.correct: a reward function has this name too; rename one",
        ),
        (["reward.safety={}"], "reward.safety: a constraint needs a cost: add functions or models to it"),
        (
            [COST, "reward.safety.functions.length.weight=0"],
            "reward.safety.functions.length.weight: a cost of weight 0 bounds nothing; give it a weight",
        ),
        (
            ["reward.safety={functions: {correct: {function: length_penalty}}}"],
            "reward.safety.functions.correct: a reward function has this name too; rename one",
        ),
        (
            [COST, "reward.safety.multiplier=200"],
            "reward.safety.multiplier: must be at most max_multiplier (100), got 200",
        ),
        (
            [ONLINE_DPO, "rollout.sampling.samples_per_prompt=1"],
            "rollout.sampling.samples_per_prompt: the best of a prompt's samples is set against the worst: give at "
            "least 2, got 1",
        ),
        (
            [ONLINE_DPO, "critic={}"],
            "critic: online_dpo compares samples and has no use for a critic; remove the section",
        ),
        (
            [ONLINE_DPO, "learner.epochs=2"],
            "learner.epochs: online_dpo takes one optimiser step a batch, got 2; remove it",
        ),
        (
            ["algorithm={name: online_dpo, preference: {loss: kto}}"],
            "algorithm.preference.loss: kto needs other prompts' responses; choose a loss on pairs",
        ),
        (
            ["algorithm={name: online_dpo, kl: {coef: 0.1}}"],
            "algorithm.kl: is of policy-gradient methods, online_dpo has no use for it; remove it",
        ),
    ],
)
def test_judges_constraints_and_pairs_made_online(overrides, expected):
    assert expected in problems(GRPO, *overrides)


def test_a_judge_a_constraint_and_online_pairs_are_accepted():
    assert problems(GRPO, JUDGE, COST) == []
    assert problems(GRPO, ONLINE_DPO, "algorithm.preference={loss: ipo}", "evaluation.metric=correct") == []
    assert problems(GRPO, COST, "data.heldout=4", "evaluation={metric: length, every_steps: 2}") == []


REWARD_MODEL = DPO.replace("{name: dpo, preference: {loss: sigmoid}}", "reward_model")
TOO_LARGE = "model.lora.rank: vLLM runs ranks up to 512, got 513; lower it"
NOTHING = "model.lora.targets: no module is adapted, so nothing is trained; name some or use all-linear"
HEAD = "model.lora.targets: embeddings and output heads cannot be adapted, got lm_head; remove it"
OWN_HEAD = "model.lora.export: a reward model's head is trained beside its adapter; use merged, got adapter"
NO_EXPORT = "model.lora.export: nothing is exported; set checkpoint.export or remove it, got adapter"


@pytest.mark.parametrize(
    ("text", "overrides", "expected"),
    [
        (GRPO, ["model.lora={rank: 513}"], [TOO_LARGE]),
        (GRPO, ["model.lora={targets: []}"], [NOTHING]),
        (DPO, ["model.lora={targets: [q_proj, lm_head]}"], [HEAD]),
        (REWARD_MODEL, ["model.lora={export: adapter}"], [OWN_HEAD]),
        (DPO, ["model.lora={export: adapter}", "checkpoint.export=false"], [NO_EXPORT]),
        (PPO, ["model.lora={}", "learner.ranks=2", "learner.zero.stage=3"], []),
        (GRPO, ["model.lora={targets: [q_proj, layers.0.mlp.up_proj], rank: 512, alpha: 1.5}"], []),
        (REWARD_MODEL, ["model.lora={}"], []),
    ],
)
def test_adapters(text, overrides, expected):
    assert problems(text, *overrides) == expected


SUMS = "data.reasoning_gym={task: chain_sum, answer_format: 'So %s!'}"


def test_an_answer_is_said_for_rows_that_are_stored_and_holds_the_answer():
    key = "data.reasoning_gym.answer_format"
    assert problems(DPO, "data.path=null", SUMS % "{answer}") == []
    assert problems(DPO, "data.path=null", SUMS % "") == [f"{key}: must hold {{answer}}, got 'So !'"]
    several = "data.reasoning_gym={task: chain_sum, answer_format: ['{answer}', 'So!'], rejected_format: '%s'}"
    assert problems(DPO, "data.path=null", several % "No: {answer}") == [f"{key}: must hold {{answer}}, got 'So!'"]
    rejected = "data.reasoning_gym.rejected_format"
    assert problems(DPO, "data.path=null", several % "{answer}")[1:] == [
        f"{rejected}: is how the chosen side says it too, got '{{answer}}'; change one"
    ]
    lone = "data.reasoning_gym={task: chain_sum, rejected_format: 'No: {answer}'}"
    assert problems(
        "name: s\nsteps: 4\nmodel: {path: m}\nalgorithm: sft\ndata: {path: a.jsonl}", "data.path=null", lone
    ) == [f"{rejected}: sft has no rejected side here; remove it"]
    online = f"{key}: the policy answers by itself, nothing is said for it; remove it"
    assert problems(GRPO, "data.path=null", SUMS % "{answer}") == [online]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["recovery.watchdog_s=3600"],
            "recovery.watchdog_s: must be longer than the longest deadline that it watches over (10800 s), got 3600; "
            "lower rollout.timeout_s, learner.update_timeout_s, weights.timeout_s or ray.start_timeout_s, or raise it",
        ),
        (
            ["recovery.silence_s=1"],
            "recovery.silence_s: must be at least 2: a worker is asked every 1 s, got 1",
        ),
        (
            ["recovery.slow_factor=1.5"],
            "recovery.slow_factor: must be more than 1.5, for equal workers differ by that much, got 1.5; null lets "
            "the slow go on",
        ),
        (
            ["rollout.timeout_s=60"],
            "rollout.stall_timeout_s: must be at most rollout.timeout_s (60), or it never acts, got 120",
        ),
    ],
)
def test_a_deadline_that_could_never_act_or_acts_too_early_is_refused(overrides, expected):
    assert problems(GRPO, *overrides) == [expected]
    assert problems(GRPO, "recovery.watchdog_s=10801", "rollout.stall_timeout_s=60") == []
    assert problems(GRPO, "recovery.slow_factor=1.6") == problems(GRPO, "recovery.slow_factor=null") == []
