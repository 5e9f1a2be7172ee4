"""What runs inside the rank processes of test_adapter_engines.py: a policy with an adapter, on one engine of each kind.

In: rank, world size, {"folder", "model", "kinds"}. Out: {kind: numbers}; the test file holds the expectations. Left
out: asserting.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from actors.models.lora import LoraSettings
from learners.base import LearnerBase
from learners.engines.deepspeed_engine import DeepSpeedEngine, construction_context
from learners.engines.models import load_policy
from learners.engines.settings import ModelSettings, OptimizerSettings
from learners.engines.torch_engine import TorchEngine
from learners.methods.method import Method, StepInputs, TokenColumn, UpdateSettings, assemble
from learners.methods.presets import PRESETS
from learners.policy import PolicyLearner
from tests.contracts.learners.train_engine_cases import CPU, zero_settings
from tests.fixtures.columns import random_batch, scores_of

LORA = LoraSettings(rank=4, alpha=6.0, seed=3)
SMOOTH = OptimizerSettings(lr=1e-2, eps=1e-2, weight_decay=0.1, max_grad_norm=0.5)
BATCH = random_batch(5, [4, 3, 5, 4], [[5, 2], [3, 4], [6, 2], [3, 3]])
TOKENS = len(BATCH.token_ids)
SCORES = scores_of(1, 0, 0, 1, 1, 0, 2, 1)


def make(kind: str, model: str, dtype: str, world: int) -> PolicyLearner:
    settings = ModelSettings(model, dtype=dtype, lora=LORA)
    if kind == "torch":
        engine = TorchEngine(load_policy(settings), optimizer=SMOOTH, dtype=dtype, device=CPU)
    else:
        zero = zero_settings(kind)
        with construction_context(zero, dtype):
            module = load_policy(settings)
        engine = DeepSpeedEngine(module, zero=zero, optimizer=SMOOTH, dtype=dtype, device=CPU)
    return PolicyLearner(engine, Method(PRESETS["grpo"]), UpdateSettings(micro_batch_tokens=16))


def column(mine: TokenColumn, world: int) -> np.ndarray:
    """The whole column from all ranks' shares."""
    shares: list = [None] * world
    dist.all_gather_object(shares, mine)
    return assemble(shares, TOKENS)


def steps(learner: PolicyLearner, count: int, world: int, reference: np.ndarray) -> None:
    """Each step asks for the reference first, as a run does: the adapter is off and on again before the update."""
    for step in range(count):
        learner.reference_logprobs(BATCH)
        learner.update(StepInputs(step, BATCH, SCORES, reference=reference, kl_coef=0.04))


def parts(learner: LearnerBase, *, published: bool) -> dict[str, torch.Tensor]:
    stream = learner.published_parameters(1 << 14) if published else learner.full_parameters(1 << 14)
    return {name: tensor.float().clone() for part in stream for name, tensor in part}


def digest(learner: LearnerBase) -> str:
    h = hashlib.sha256()
    for name, tensor in parts(learner, published=True).items():
        h.update(name.encode() + tensor.numpy().tobytes())
    return h.hexdigest()


def difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return max((a[name] - b[name]).abs().max().item() for name in a.keys() | b.keys())


def kind_case(kind: str, world: int, model: str, folder: Path) -> dict:
    out: dict = {}
    learner = make(kind, model, "float32", world)
    # The twin is one rank that sees the whole batch.
    twin = make("torch", model, "float32", 1)
    reference = column(learner.reference_logprobs(BATCH), world)
    start = digest(learner)
    out["published"] = sorted({name.rpartition("lora_")[2] for name in parts(learner, published=True)})
    out["starts_as_the_twin"] = start == digest(twin)
    steps(learner, 3, world, reference)
    steps(twin, 3, 1, reference)
    out["moved"] = digest(learner) != start
    out["difference"] = difference(parts(learner, published=True), parts(twin, published=True))
    out["merged_difference"] = difference(parts(learner, published=False), parts(twin, published=False))
    again = column(learner.reference_logprobs(BATCH), world)
    out["reference_stayed"] = bool(np.array_equal(again, reference))
    out["policy_left"] = float(np.abs(column(learner.logprobs(BATCH), world) - reference).max())
    for dtype in ("float32", "bfloat16"):
        place = folder / f"{kind}-{dtype}"
        place.mkdir(parents=True, exist_ok=True)
        first = make(kind, model, dtype, world)
        steps(first, 1, world, reference)
        first.save(place)
        steps(first, 2, world, reference)
        fresh = make(kind, model, dtype, world)
        fresh.load(place)
        steps(fresh, 2, world, reference)
        out[f"resumed_{dtype}"] = digest(fresh) == digest(first)
        out[f"bytes_{dtype}"] = sum(f.stat().st_size for f in place.glob("rank-*"))
        dist.barrier()
    return out


def run(rank: int, world: int, payload: dict) -> dict:
    torch.set_num_threads(1)
    return {kind: kind_case(kind, world, payload["model"], Path(payload["folder"])) for kind in payload["kinds"]}
