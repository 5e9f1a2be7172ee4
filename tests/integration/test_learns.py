"""Every method learns: a tiny random model, the plain engines, one Ray for all, and a metric that must move.

The rule for rewards is digit_share (a random model writes few digits), for pairs that digits are preferred to letters.
Bounds are stated beside each method. One seed in `make test`; three in `make learn`, which writes the table of what
moved (RAYLIGN_LEARN_TABLE names the file).
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from actors.models.reward_model import RewardModel
from cluster.config import load_config
from cluster.driver import run
from cluster.run.directory import RunDirectory
from cluster.run.records.console import Console
from cluster.training import offline
from tests.integration.local_learner import LocalLearnerGroup
from tests.integration.runs import merged, recipe, rows

STEPS = 16
ON_POLICY: dict[str, dict[str, Any]] = {
    "ppo": {"kl": {"coef": 1e-3}},  # 0.05 would outweigh what sixteen steps can tell of the reward
    "grpo": {},
    "dr_grpo": {},
    "rloo": {"kl": {"coef": 1e-3}},  # the same, its score holding the KL of the whole response
    "reinforce_pp": {},
    "reinforce_pp_baseline": {},
    "remax": {"kl": {"coef": 1e-3}},
    "opo": {},
    "dapo": {"loss": {"filter_overlong": False}},  # a random model never ends its responses: all would be filtered
    "gspo": {},
    "cispo": {},
}
"""Methods, and what they change in their presets here."""
SEEDS = [0, pytest.param(1, marks=pytest.mark.learn), pytest.param(2, marks=pytest.mark.learn)]
GAIN = 0.15
"""Least rise of the mean reward from the first three steps to the last three; chance moves it by about 0.02."""
DPO_LOSSES = ("robust", "hinge", "ipo", "exo_pair", "nca_pair", "sppo_hard", "apo_zero", "apo_down", "discopop")
PAIR_METHODS = [*(("dpo", loss) for loss in DPO_LOSSES), *((name, name) for name in ("kto", "orpo", "simpo", "cpo"))]
"""Besides `dpo` with its usual loss."""
ACCURACY = 0.9
"""Least accuracy on 24 held-out pairs; a random model has about 0.5."""


@pytest.fixture(params=SEEDS, ids=lambda seed: f"seed{seed}")
def seed(request: pytest.FixtureRequest) -> int:
    return request.param


Note = Callable[[str, str, int, float, float], None]


@pytest.fixture(scope="module")
def learned() -> Iterator[Note]:
    """(method, measure, seed, before, after) of each run; a table of them at the end where one is asked for."""
    found: dict[tuple[str, str], dict[int, str]] = {}

    def note(method: str, measure: str, seed: int, before: float, after: float) -> None:
        found.setdefault((method, measure), {})[seed] = f"{before:.2f} to {after:.2f}"

    yield note
    if target := os.environ.get("RAYLIGN_LEARN_TABLE"):
        lines = ["| method | measure | seed 0 | seed 1 | seed 2 |", "| --- | --- | --- | --- | --- |"]
        for (method, measure), by in found.items():
            lines.append(f"| {method} | {measure} | " + " | ".join(by.get(s, "") for s in range(3)) + " |")
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        Path(target).write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def ray_address() -> Iterator[str]:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "include_dashboard": False})
    try:
        yield cluster.address
    finally:
        cluster.shutdown()


ONLINE: dict[str, Any] = {
    "steps": STEPS,
    "data": {"heldout": 0},
    "rollout": {"engine": "torch", "prompts_per_step": 8, "sampling": {"samples_per_prompt": 4, "max_tokens": 12}},
    "learner": {"backend": "torch", "optimizer": {"lr": 1e-3}},
    "checkpoint": {"every_steps": 100, "export": False},
}


def train(folder: Path, model: Path, address: str, /, **changes: Any) -> list[dict[str, Any]]:
    """A run that makes its own samples, in this process: ONLINE with changes; the metrics of its steps."""
    path = recipe(folder, model, **merged(ONLINE, changes), ray={"address": address})
    run(load_config(path), RunDirectory.create(str(folder / "run")), resume=False, console=Console())
    found = rows(folder / "run")[1:]
    assert len(found) == STEPS
    return found


def train_offline(folder: Path, model: Path, address: str, /, **sections: Any) -> list[dict[str, Any]]:
    """A run on stored rows in this process; its metrics."""
    path = folder / "recipe.yaml"
    whole = {
        "name": "stored",
        "model": {"path": str(model), "dtype": "float32", "max_length": 256},
        "learner": {"backend": "torch", "optimizer": {"lr": 1e-3}},
        "checkpoint": {"every_steps": 100, "export": False},
        "ray": {"address": address},
    }
    path.write_text(json.dumps(whole | sections))
    run(load_config(path), RunDirectory.create(str(folder / "run")), resume=False, console=Console())
    return rows(folder / "run")


def gains(method: str, metric: str, found: list[dict[str, Any]], seed: int, learned: Note) -> None:
    """The metric's mean over the last three steps is above that over the first three by more than GAIN."""
    values = [row[metric] for row in found]
    before, after = float(np.mean(values[:3])), float(np.mean(values[-3:]))
    learned(method, "share of digits in samples", seed, before, after)
    assert after - before > GAIN, values


@pytest.mark.parametrize("name", ON_POLICY)
def test_a_policy_gradient_method_raises_the_reward(
    name: str, seed: int, learned: Note, ray_address: str, tiny_model: Path, tmp_path: Path
) -> None:
    critic = {"optimizer": {"lr": 1e-3, "head_lr": 1e-2}} if name == "ppo" else None
    found = train(
        tmp_path,
        tiny_model,
        ray_address,
        seed=seed,
        algorithm={"name": name, **ON_POLICY[name]},
        critic=critic,
    )
    gains(name, "reward/mean", found, seed, learned)


SPOTTY = {
    "functions": {"digits": {"function": "tests/integration/rewards.py:spotty_digit_share"}},
    "max_failures": 1000,
}


@pytest.mark.parametrize("kind", ["partial", "one_step_off", "asynchronous"])
def test_a_schedule_that_runs_ahead_learns_and_keeps_its_bound(
    kind: str, seed: int, learned: Note, ray_address: str, tiny_model: Path, tmp_path: Path
) -> None:
    found = train(
        tmp_path,
        tiny_model,
        ray_address,
        seed=seed,
        algorithm="dr_grpo",
        deterministic=False,
        rollout={"schedule": {"kind": kind}, "workers": 2},
        reward=SPOTTY,
    )
    gains(f"dr_grpo, {kind}", "reward/mean", found, seed, learned)
    ages = [row["staleness/max"] for row in found]
    assert ages[0] == 0 and ages[-1] == 1 and max(ages) <= 1
    assert all(0 <= row["staleness/mean"] <= row["staleness/max"] for row in found)
    with closing(sqlite3.connect(tmp_path / "run" / "ledger.sqlite")) as ledger:
        states = dict(ledger.execute("SELECT state, count(*) FROM prompts GROUP BY state").fetchall())
        reasons = {reason for (reason,) in ledger.execute("SELECT reason FROM prompts WHERE state = 'dropped'")}
    unscored = sum(row["score/failed"] for row in found) / 4
    assert unscored > STEPS / 2 and reasons == {"no score"}, "and none because it came too late"
    assert states == {"trained": STEPS * 8 - unscored, "dropped": unscored}, "none was admitted that no step took"


def test_an_adapter_learns_with_the_base_as_its_reference_and_publishes_itself_alone(
    seed: int, learned: Note, ray_address: str, tiny_model: Path, tmp_path: Path
) -> None:
    """GRPO with its KL, which needs a reference; the export is the base with the adapter merged in."""
    found = train(
        tmp_path,
        tiny_model,
        ray_address,
        seed=seed,
        algorithm={"name": "grpo", "kl": {"coef": 1e-3}},
        model={"lora": {"rank": 8, "alpha": 16.0}},
        learner={"optimizer": {"lr": 1e-2}},
        checkpoint={"export": True},
    )
    gains("grpo with an adapter", "reward/mean", found, seed, learned)
    assert found[0]["kl/ref"] == pytest.approx(0.0, abs=1e-6) and found[-1]["kl/ref"] > 0.01
    assert all(row["sync/bytes"] == 4 * 2 * 8 * (256 + 192 * 2 + 256 + 384 * 3) for row in found)
    policy = tmp_path / "run" / "policy" / f"step-{STEPS}"
    tuned, base = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (policy, tiny_model))
    changed = {name.rpartition(".")[0].rpartition(".")[2] for name in base if not torch.equal(tuned[name], base[name])}
    assert changed == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    made = [
        {
            "prompt": f"item {i}",
            "chosen": f"{i * 7919 % 100000}",
            "rejected": "".join(chr(97 + i * k % 26) for k in (3, 5, 7)),
        }
        for i in range(120)
    ]
    path.write_text("".join(json.dumps(pair) + "\n" for pair in made))
    return path


def follows(method: str, found: list[dict[str, Any]], seed: int, learned: Note) -> None:
    """Held-out preferences are followed at least as often as ACCURACY says."""
    accuracies = [row["eval/accuracy"] for row in found if "eval/accuracy" in row]
    learned(method, "held-out accuracy", seed, accuracies[0], accuracies[-1])
    assert accuracies[-1] >= ACCURACY, accuracies


def orders_pairs(
    folder: Path, model: Path, address: str, pairs: Path, name: str, loss: str, seed: int, learned: Note
) -> None:
    found = train_offline(
        folder,
        model,
        address,
        seed=seed,
        steps=STEPS,
        algorithm={"name": name, "preference": {"loss": loss}},
        data={"path": str(pairs), "heldout": 24},
    )
    follows(f"{name}: {loss}" if name == "dpo" else name, found, seed, learned)
    assert found[-1]["loss"] < found[1]["loss"]


def test_dpo_orders_held_out_pairs(
    seed: int, learned: Note, pairs: Path, ray_address: str, tiny_model: Path, tmp_path: Path
) -> None:
    orders_pairs(tmp_path, tiny_model, ray_address, pairs, "dpo", "sigmoid", seed, learned)


@pytest.mark.parametrize(("name", "loss"), PAIR_METHODS, ids=["-".join(both) for both in PAIR_METHODS])
def test_every_other_loss_on_pairs_orders_them_too(
    name: str,
    loss: str,
    seed: int,
    learned: Note,
    pairs: Path,
    ray_address: str,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The run of `dpo` but for its loss; the learner's rank is this process."""
    monkeypatch.setattr(offline, "LearnerGroup", LocalLearnerGroup)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    orders_pairs(tmp_path, tiny_model, ray_address, pairs, name, loss, seed, learned)


ADAPTER = {"lora": {"rank": 8, "alpha": 16.0}}


@pytest.mark.parametrize("name", ["ppo", "online_dpo"])
def test_an_adapter_learns_from_samples_of_its_own(
    name: str, seed: int, learned: Note, ray_address: str, tiny_model: Path, tmp_path: Path
) -> None:
    critic = {"optimizer": {"lr": 1e-3, "head_lr": 1e-2}} if name == "ppo" else None
    algorithm = {"name": name, **ON_POLICY.get(name, {})}
    changes = {"algorithm": algorithm, "critic": critic, "model": ADAPTER, "learner": {"optimizer": {"lr": 1e-2}}}
    found = train(tmp_path, tiny_model, ray_address, seed=seed, **changes)
    gains(f"{name} with an adapter", "reward/mean", found, seed, learned)
    apart = "kl/ref" if name == "ppo" else "rewards/chosen"
    assert found[0][apart] == pytest.approx(0.0, abs=1e-6), "the reference is the base, which the adapter starts as"


@pytest.mark.parametrize("name", ["dpo", "reward_model"])
def test_an_adapter_learns_from_pairs(
    name: str, seed: int, learned: Note, pairs: Path, ray_address: str, tiny_model: Path, tmp_path: Path
) -> None:
    found = train_offline(
        tmp_path,
        tiny_model,
        ray_address,
        seed=seed,
        steps=STEPS,
        algorithm={"name": name},
        model={"path": str(tiny_model), "dtype": "float32", "max_length": 256, **ADAPTER},
        learner={"backend": "torch", "optimizer": {"lr": 1e-2}},
        data={"path": str(pairs), "heldout": 24},
    )
    follows(f"{name} with an adapter", found, seed, learned)


def test_supervised_tuning_raises_the_log_prob_of_held_out_answers(
    seed: int, learned: Note, ray_address: str, tiny_model: Path, tmp_path: Path
) -> None:
    """The rule: the answer repeats the number in the question."""
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"say {i}", "completion": f"{i}."}) + "\n" for i in range(100, 220)))
    found = train_offline(
        tmp_path,
        tiny_model,
        ray_address,
        seed=seed,
        steps=16,
        algorithm="sft",
        data={"path": str(data), "heldout": 24},
        learner={"backend": "torch", "optimizer": {"lr": 2e-3}},
        checkpoint={"every_steps": 100},
    )
    learned("sft", "held-out perplexity", seed, found[0]["eval/perplexity"], found[-1]["eval/perplexity"])
    assert found[-1]["eval/logprob"] - found[0]["eval/logprob"] > 1.0, "nats a token; at chance it is -log(100)"
    assert found[-1]["eval/perplexity"] < found[0]["eval/perplexity"] / 2
    assert (tmp_path / "run" / "policy" / "step-16" / "config.json").is_file()


def test_kto_learns_from_single_judged_responses(
    seed: int, learned: Note, pairs: Path, ray_address: str, tiny_model: Path, tmp_path: Path
) -> None:
    """The same rule as for pairs, one response a row: digits are desirable, letters are not."""
    data = tmp_path / "judged.jsonl"
    made = [json.loads(line) for line in pairs.read_text().splitlines()]
    sides = [
        (row["prompt"], row["chosen"], True) if i % 2 else (row["prompt"], row["rejected"], False)
        for i, row in enumerate(made)
    ]
    data.write_text("".join(json.dumps({"prompt": p, "completion": c, "label": y}) + "\n" for p, c, y in sides))
    found = train_offline(
        tmp_path,
        tiny_model,
        ray_address,
        seed=seed,
        steps=12,
        algorithm={"name": "kto", "preference": {"pairs_per_step": 16}},
        data={"path": str(data), "heldout": 24, "labels": {"column": "label"}},
    )
    follows("kto, single responses", found, seed, learned)
    assert found[-1]["rewards/chosen"] > found[-1]["rewards/rejected"]


def test_a_reward_model_learns_from_pairs_and_scores_as_it_learned(
    seed: int, learned: Note, pairs: Path, ray_address: str, tiny_model: Path, tmp_path: Path
) -> None:
    found = train_offline(
        tmp_path,
        tiny_model,
        ray_address,
        seed=seed,
        steps=16,
        algorithm={"name": "reward_model", "reward_model": {"rows_per_step": 8}},
        data={"path": str(pairs), "heldout": 24},
        checkpoint={"every_steps": 100},
    )
    follows("reward_model, pairs", found, seed, learned)
    assert 0.0 <= found[-1]["eval/calibration_error"] <= 0.5
    model = RewardModel(tmp_path / "run" / "policy" / "step-16", dtype=torch.float32)
    rows_ = [json.loads(line) for line in pairs.read_text().splitlines()]
    scores = [
        model.score_conversations(
            [[{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row[side]}] for row in rows_]
        )
        for side in ("chosen", "rejected")
    ]
    assert (scores[0] > scores[1]).mean() >= ACCURACY


def test_a_reward_model_learns_ratings(
    seed: int, learned: Note, ray_address: str, tiny_model: Path, tmp_path: Path
) -> None:
    """The rule: the rating is the share of digits in the response."""
    data = tmp_path / "rated.jsonl"
    made = [
        {"prompt": f"item {i}", "completion": "7" * (i % 5) + "x" * (4 - i % 5), "label": i % 5 / 4} for i in range(160)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in made))
    found = train_offline(
        tmp_path,
        tiny_model,
        ray_address,
        seed=seed,
        steps=24,
        algorithm={"name": "reward_model"},
        data={"path": str(data), "heldout": 24, "labels": {"column": "label", "range": [0, 1]}},
    )
    first, last = (-row["eval/negative_squared_error"] for row in (found[0], found[-1]))
    learned("reward_model, ratings", "held-out squared error", seed, first, last)
    assert found[-1]["eval/rank_correlation"] >= 0.8, found[-1]
    assert last < first / 2


def test_online_dpo_raises_the_reward_of_its_own_samples(
    seed: int, learned: Note, ray_address: str, tiny_model: Path, tmp_path: Path
) -> None:
    found = train(
        tmp_path,
        tiny_model,
        ray_address,
        seed=seed,
        algorithm="online_dpo",
    )
    gains("online_dpo", "reward/mean", found, seed, learned)
    assert all(row["preference/pairs"] + row["preference/ties"] == 8 for row in found)


def test_online_dpo_follows_a_judge_and_a_constraint_holds_a_cost(
    seed: int, learned: Note, ray_address: str, tiny_model: Path, tmp_path: Path
) -> None:
    """The judge prefers more digits; the cost is the share of the digit 7, which must stay under a tenth."""
    file = tmp_path / "rules.py"
    file.write_text(
        "def digits(text):\n"
        "    return sum(c.isdigit() for c in text)\n"
        "def more_digits(prompt, response, data):\n"
        "    mine, theirs = digits(response), digits(data['other'])\n"
        "    return 0.5 if mine == theirs else float(mine > theirs)\n"
        "def sevens(prompt, response, data):\n"
        "    return response.count('7') / max(1, len(response))\n"
        "def share(prompt, response, data):\n"
        "    return digits(response) / max(1, len(response))\n"
    )
    found = train(
        tmp_path,
        tiny_model,
        ray_address,
        seed=seed,
        algorithm="online_dpo",
        reward={
            "functions": {"digits": {"function": f"{file}:share", "weight": 0.0}},
            "judges": {"better": {"function": f"{file}:more_digits"}},
            "safety": {"functions": {"sevens": {"function": f"{file}:sevens"}}, "bound": 0.1},
        },
    )
    gains("online_dpo, judge and constraint", "reward/digits", found, seed, learned)
    assert all(abs(row["reward/better"] - 0.5) < 1e-6 for row in found), "within a group wins and losses are as many"
    assert found[-1]["safety/cost"] < 0.1 and found[-1]["safety/multiplier"] < 1.0


def test_a_constraint_takes_back_what_the_reward_alone_would_raise(
    seed: int, learned: Note, ray_address: str, tiny_model: Path, tmp_path: Path
) -> None:
    """The reward is the share of digits and so is the cost: nothing may be gained once the bound is passed."""
    file = tmp_path / "rules.py"
    file.write_text(
        "def share(prompt, response, data):\n    return sum(c.isdigit() for c in response) / max(1, len(response))\n"
    )
    found = train(
        tmp_path,
        tiny_model,
        ray_address,
        seed=seed,
        algorithm="dr_grpo",
        reward={
            "functions": {"digits": {"function": f"{file}:share"}},
            "safety": {"functions": {"cost": {"function": f"{file}:share", "weight": 2.0}}, "bound": 0.0, "lr": 1.0},
        },
    )
    multipliers = [row["safety/multiplier"] for row in found]
    assert multipliers == sorted(multipliers) and multipliers[-1] > multipliers[0]
    assert found[0]["safety/cost"] == pytest.approx(2 * found[0]["reward/cost"])
    digits = [row["reward/digits"] for row in found]
    learned("dr_grpo, constrained", "share of digits", seed, float(np.mean(digits[:3])), float(np.mean(digits[-3:])))
    assert np.mean(digits[-3:]) - np.mean(digits[:3]) < 0.0, digits
