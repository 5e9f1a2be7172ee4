"""From the config to data and rewards: which prompts, pairs and reward functions a run uses.

In: a Config (and a tokenizer where rows are read). Out: settings and sources of `actors.data`, reward specs. Held-out
rows never share a question with training. Left out: the order of prompts (PromptOrder), loading reward models, and
what is wrong with them (DataError, RewardError say it; commands/check.py collects it). Imports no torch.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from actors.data import (
    DataError,
    PreferencePair,
    PreferenceSettings,
    PreferenceSource,
    PromptSettings,
    PromptSource,
    load_preferences,
    load_prompts,
    train_and_heldout,
)
from actors.data.chat import Tokenizer
from actors.data.demonstrations import DemonstrationSettings, DemonstrationSource, load_demonstrations
from actors.data.rows import Origin
from actors.rewards import RewardSpec
from cluster.config.schema import Config

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
FILE_SUFFIXES = (".jsonl", ".ndjson", ".parquet", ".json", ".csv")


@dataclass(frozen=True, slots=True)
class OnlineInputs:
    """Prompts to train on, and those an evaluation takes (None without data.heldout)."""

    train: PromptSource
    heldout: PromptSource | None


@dataclass(frozen=True, slots=True)
class PairSet:
    """Pairs by row, pair i having id i; `source` keeps what became of the rows that were read."""

    source: PreferenceSource

    def __len__(self) -> int:
        return len(self.source.pairs)

    def __getitem__(self, row: int) -> PreferencePair:
        return self.source.pairs[row]

    def fingerprint(self) -> str:
        """Hash of all token ids in order: a resumed run compares it, so that ids still mean the same pairs."""
        h = hashlib.sha256()
        for pair in self.source.pairs:
            for ids in (pair.prompt_tokens, pair.chosen_tokens, pair.rejected_tokens):
                h.update(np.array([len(ids), *ids], np.int32).tobytes())
        return h.hexdigest()


@dataclass(frozen=True, slots=True)
class PreferenceInputs:
    """Pairs to train on, and those an evaluation takes (None without data.heldout). read: rows that were read."""

    train: PairSet
    heldout: PairSet | None
    read: int


@dataclass(frozen=True, slots=True)
class DemonstrationInputs:
    """Conversations to train on, and those an evaluation takes (None without data.heldout)."""

    train: DemonstrationSource
    heldout: DemonstrationSource | None
    read: int


OfflineInputs = PreferenceInputs | DemonstrationInputs


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
        **_origin(config),
        column=None if data.reasoning_gym else (data.messages_column or data.prompt_column),
        system_prompt=data.system_prompt,
        suffix=data.suffix,
        max_tokens=prompt_window(config),
        overlong=data.overlong,
        skip_invalid=data.skip_invalid,
    )


def preference_pair_settings(config: Config) -> PreferenceSettings:
    data = config.data
    return PreferenceSettings(
        **_origin(config),
        prompt_column=data.messages_column or data.prompt_column,
        system_prompt=data.system_prompt,
        max_tokens=config.model.max_length,
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


def load_preference_inputs(config: Config, tokenizer: Tokenizer) -> PreferenceInputs:
    """All pairs, tokenised. DataError names every bad row."""
    source = load_preferences(preference_pair_settings(config), tokenizer)
    if config.data.heldout == 0:
        return PreferenceInputs(PairSet(source), None, source.read)
    train, heldout = split_pairs(source, config.data.heldout, config.seed)
    evaluated = replace(heldout, pairs=heldout.pairs[: config.evaluation.prompts])
    return PreferenceInputs(PairSet(train), PairSet(evaluated), source.read)


def demonstration_settings(config: Config) -> DemonstrationSettings:
    data = config.data
    return DemonstrationSettings(
        Origin(**_origin(config)),
        messages_column=data.messages_column,
        prompt_column="question" if data.reasoning_gym else data.prompt_column,
        completion_column="answer" if data.reasoning_gym else data.completion_column,
        system_prompt=data.system_prompt,
        max_tokens=config.model.max_length,
        overlong=data.overlong,
        skip_invalid=data.skip_invalid,
    )


def load_demonstration_inputs(config: Config, tokenizer: Tokenizer) -> DemonstrationInputs:
    """All conversations, tokenised. DataError names every bad row."""
    source = load_demonstrations(demonstration_settings(config), tokenizer)
    if config.data.heldout == 0:
        return DemonstrationInputs(source, None, source.read)
    train, heldout = split_demonstrations(source, config.data.heldout, config.seed)
    return DemonstrationInputs(train, replace(heldout, rows=heldout.rows[: config.evaluation.prompts]), source.read)


def split_demonstrations(
    source: DemonstrationSource, heldout: int, seed: int
) -> tuple[DemonstrationSource, DemonstrationSource]:
    """(training, held-out): see `hold_out`."""
    rest, kept = hold_out(source.rows, heldout, seed, source.name)
    return (
        replace(source, rows=rest, read=len(rest) + source.skipped + source.dropped),
        DemonstrationSource(source.name, kept, read=len(kept), skipped=0, dropped=0),
    )


def offline_settings(config: Config) -> PreferenceSettings | DemonstrationSettings:
    return preference_pair_settings(config) if config.algorithm.on_pairs else demonstration_settings(config)


def load_offline_inputs(config: Config, tokenizer: Tokenizer) -> OfflineInputs:
    """The stored rows of a method that makes none of its own."""
    load = load_preference_inputs if config.algorithm.on_pairs else load_demonstration_inputs
    return load(config, tokenizer)


def split_pairs(source: PreferenceSource, heldout: int, seed: int) -> tuple[PreferenceSource, PreferenceSource]:
    """(training, held-out): see `hold_out`."""
    rest, kept = hold_out(source.pairs, heldout, seed, source.name)
    return (
        replace(source, pairs=rest, read=len(rest) + source.skipped + source.dropped),
        PreferenceSource(source.name, kept, read=len(kept), skipped=0, truncated=0, dropped=0),
    )


def hold_out(rows: Sequence[Any], heldout: int, seed: int, name: str) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """(rest, kept): one row of each of `heldout` prompts, drawn by seed; all rows of those prompts leave the rest."""
    first = {row.prompt_tokens: row for row in reversed(rows)}
    if heldout >= len(first):
        reason = f"data.heldout {heldout} leaves nothing to train on: {len(first)} distinct prompts; lower it"
        raise DataError(name, [(name, reason)])
    prompts = sorted(first, key=lambda tokens: first[tokens].id)
    chosen = set(random.Random(seed).sample(prompts, heldout))
    rest = [row for row in rows if row.prompt_tokens not in chosen]
    return _renumbered(rest), _renumbered([first[tokens] for tokens in prompts if tokens in chosen])


def reward_specs(config: Config) -> list[RewardSpec]:
    """The reward functions as the runner takes them. `batched: false` leaves it to the function's own mark."""
    return [
        RewardSpec(
            name=name,
            function=function.function,
            weight=function.weight,
            timeout_s=function.timeout_s,
            batched=True if function.batched else None,
            args=function.args,
        )
        for name, function in config.reward.functions.items()
    ]


def _origin(config: Config) -> dict[str, Any]:
    """Where rows come from, as both kinds of settings take it. The seed draws a task's items, or the held-out rows."""
    data = config.data
    if data.reasoning_gym is not None:
        task = data.reasoning_gym
        return {"task": task.task, "task_params": task.params, "size": task.size, "seed": task.seed}
    key = "hub_id" if is_hub_id(data.path) else "path"
    return {key: data.path, "split": data.split, "seed": config.seed}


def is_hub_id(path: str) -> bool:
    """Whether `path` names a data set on the hub: nothing local of that name, and written as NAME or OWNER/NAME."""
    if Path(path).expanduser().exists() or path.endswith(FILE_SUFFIXES):
        return False
    return HUB_ID.fullmatch(path) is not None


def _renumbered(rows: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(replace(row, id=i) for i, row in enumerate(rows))
