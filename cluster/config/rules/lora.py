"""Rules of an adapter: what the engines, the learners and its files cannot hold.

In: a Config. Out: Problems. Left out: whether the model has the modules that are named (peft says so at the start).
"""

from __future__ import annotations

from collections.abc import Iterator

from actors.models.lora import ENGINE_RANKS
from cluster.config.problem import Problem
from cluster.config.schema import Config

VOCABULARY_MODULES = ("lm_head", "embed_tokens", "score", "wte", "embed_out")
"""Ends of names of embeddings and heads."""


def lora_problems(config: Config) -> Iterator[Problem]:
    lora = config.model.lora
    if lora is None:
        return
    if lora.rank > max(ENGINE_RANKS):
        yield Problem("model.lora.rank", f"vLLM runs ranks up to {max(ENGINE_RANKS)}, got {lora.rank}; lower it")
    if not lora.targets:
        yield Problem("model.lora.targets", "no module is adapted, so nothing is trained; name some or use all-linear")
    for target in () if lora.targets == "all-linear" else lora.targets:
        if target.rpartition(".")[2] in VOCABULARY_MODULES:
            yield Problem(
                "model.lora.targets", f"embeddings and output heads cannot be adapted, got {target}; remove it"
            )
    if lora.export == "adapter" and config.algorithm.name == "reward_model":
        yield Problem(
            "model.lora.export", "a reward model's head is trained beside its adapter; use merged, got adapter"
        )
    if lora.export == "adapter" and not config.checkpoint.export:
        yield Problem("model.lora.export", "nothing is exported; set checkpoint.export or remove it, got adapter")
