"""From the config to prompts and rewards: which a run that makes its own samples uses.

In: a Config (and a tokenizer where rows are read). Out: settings and sources of `actors.data`, reward specs. Held-out
rows never share a question with training. Left out: stored rows (stored.py), the order of prompts
(PromptOrder), loading reward models, and what is wrong with them (DataError, RewardError say it; inspect/ collects
it). Imports no torch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from actors.data import PromptSettings, PromptSource, load_prompts, train_and_heldout
from actors.data.tokenizer import Tokenizer
from actors.rewards import RewardSpec
from cluster.config.schema import Config

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
FILE_SUFFIXES = (".jsonl", ".ndjson", ".parquet", ".json", ".csv")


@dataclass(frozen=True, slots=True)
class OnlineInputs:
    """Prompts to train on, and those an evaluation takes (None without data.heldout)."""

    train: PromptSource
    heldout: PromptSource | None


def load_tokenizer(config: Config, model_path: str | Path) -> Any:
    """The policy's tokenizer, from its resolved directory."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(model_path), trust_remote_code=config.model.trust_remote_code)


def prompt_window(config: Config) -> int:
    """Tokens a prompt may have: what the longest response leaves of the window."""
    sampling, evaluation = config.rollout.sampling, config.evaluation
    return config.model.max_length - max(sampling.max_tokens, evaluation.max_tokens or 0)


def prompt_settings(config: Config) -> PromptSettings:
    data = config.data
    return PromptSettings(
        **origin_fields(config),
        column=None if data.reasoning_gym else (data.messages_column or data.prompt_column),
        system_prompt=data.system_prompt,
        suffix=data.suffix,
        max_tokens=prompt_window(config),
        overlong=data.overlong,
        skip_invalid=data.skip_invalid,
    )


def load_inputs(config: Config, tokenizer: Tokenizer) -> OnlineInputs:
    """All prompts, tokenised. DataError names every bad row."""
    settings = prompt_settings(config)
    if config.data.heldout == 0:
        return OnlineInputs(load_prompts(settings, tokenizer), None)
    train, heldout = train_and_heldout(settings, config.data.heldout, tokenizer)
    return OnlineInputs(train, replace(heldout, rows=heldout.rows[: config.evaluation.prompts]))


def reward_specs(config: Config) -> list[RewardSpec]:
    """The reward and cost functions as the runner takes them; a cost has weight 0 there. `batched: false` leaves it to
    the function's own mark."""
    functions = [(name, function, function.weight) for name, function in config.reward.functions.items()]
    if config.reward.safety is not None:
        functions += [(name, function, 0.0) for name, function in config.reward.safety.functions.items()]
    return [
        RewardSpec(
            name=name,
            function=function.function,
            weight=weight,
            timeout_s=function.timeout_s,
            batched=True if function.batched else None,
            args=function.args,
        )
        for name, function, weight in functions
    ]


def judge_functions(config: Config) -> list[RewardSpec]:
    """The judges that are functions, by name."""
    return [
        RewardSpec(name=name, function=judge.function, timeout_s=judge.timeout_s, args=judge.args)
        for name, judge in config.reward.judges.items()
        if judge.function is not None
    ]


def origin_fields(config: Config) -> dict[str, Any]:
    """Where rows come from, as both kinds of settings take it. The seed draws a task's items, or the held-out rows."""
    data = config.data
    if data.reasoning_gym is not None:
        task = data.reasoning_gym
        return {"task": task.task, "task_params": task.params, "size": task.size, "seed": task.seed}
    assert data.path is not None, "a checked config has data.path where it has no data.reasoning_gym"
    key = "hub_id" if is_hub_id(data.path) else "path"
    return {key: data.path, "hub_config": data.subset, "split": data.split, "seed": config.seed}


def is_hub_id(path: str) -> bool:
    """Whether `path` names a data set on the hub: nothing local of that name, and written as NAME or OWNER/NAME."""
    if Path(path).expanduser().exists() or path.endswith(FILE_SUFFIXES):
        return False
    return HUB_ID.fullmatch(path) is not None
