"""From the config to the rows that an offline run learns from: pairs, judged responses, or conversations.

In: a Config and a tokenizer. Out: `StoredInputs`. Held-out rows never share a prompt with training. Left out: prompts
of runs that make their own samples (online.py), the order of rows. Imports no torch.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from actors.data import DataError, PreferenceSettings, load_preferences
from actors.data.demonstrations import DemonstrationSettings, load_demonstrations
from actors.data.judged import JudgedSettings, load_judged
from actors.data.rows import Origin
from actors.data.stored import StoredRows
from actors.data.tokenizer import Tokenizer
from cluster.config.resolve import preference_settings
from cluster.config.schema import Config
from cluster.inputs.online import origin_fields


@dataclass(frozen=True, slots=True)
class StoredInputs:
    """Rows to train on, and those an evaluation takes (None without data.heldout). read: rows that were read."""

    train: StoredRows
    heldout: StoredRows | None
    read: int


def stored_settings(config: Config) -> PreferenceSettings | JudgedSettings | DemonstrationSettings:
    """What the method reads."""
    data, kind = config.data, config.row_kind
    shared: dict[str, Any] = {
        "origin": Origin(**origin_fields(config), **_formats(config)),
        "system_prompt": data.system_prompt,
        "max_tokens": config.model.max_length,
        "overlong": data.overlong,
        "skip_invalid": data.skip_invalid,
        "to_template_end": config.algorithm.name == "reward_model",
    }
    if kind == "conversations":
        return DemonstrationSettings(
            **shared,
            messages_column=data.messages_column,
            prompt_column="question" if data.reasoning_gym else data.prompt_column,
            completion_column="answer" if data.reasoning_gym else data.completion_column,
        )
    prompt_column = data.messages_column or data.prompt_column
    if kind == "pairs":
        return PreferenceSettings(**shared, prompt_column=prompt_column, margin_column=data.labels.margin_column)
    assert data.labels.column is not None, "it is what makes rows judged responses (Config.row_kind)"
    return JudgedSettings(
        **shared,
        prompt_column=prompt_column,
        completion_column=data.completion_column,
        label_column=data.labels.column,
        binary=config.algorithm.name == "kto",
        label_range=data.labels.range,
    )


def _formats(config: Config) -> dict[str, Any]:
    """How a task's answers are said; nothing where rows are read."""
    task = config.data.reasoning_gym
    if task is None:
        return {}
    formats = [task.answer_format] if isinstance(task.answer_format, str) else task.answer_format or []
    return {"answer_formats": tuple(formats), "rejected_format": task.rejected_format}


def _load(settings: PreferenceSettings | JudgedSettings | DemonstrationSettings, tokenizer: Tokenizer) -> StoredRows:
    if isinstance(settings, PreferenceSettings):
        return load_preferences(settings, tokenizer)
    if isinstance(settings, JudgedSettings):
        return load_judged(settings, tokenizer)
    return load_demonstrations(settings, tokenizer)


def load_stored_inputs(config: Config, tokenizer: Tokenizer) -> StoredInputs:
    """All rows, tokenised. DataError names every bad one."""
    source = _load(stored_settings(config), tokenizer)
    inputs = StoredInputs(source, None, source.read)
    if config.data.heldout:
        train, heldout = split(source, config.data.heldout, config.seed)
        inputs = StoredInputs(train, replace(heldout, rows=heldout.rows[: config.evaluation.prompts]), source.read)
    if config.algorithm.on_preferences and preference_settings(config).loss == "kto":
        _require_other_prompts(inputs)
    return inputs


def _require_other_prompts(inputs: StoredInputs) -> None:
    """KTO's reference point is measured on other prompts' responses."""
    for name, part in (("training", inputs.train), ("held-out", inputs.heldout)):
        if part is not None and len({row.prompt_tokens for row in part.rows}) < 2:
            reason = f"kto compares with other prompts' responses and the {name} rows have one prompt; add others"
            raise DataError(part.name, [(part.name, reason)])


def split(source: StoredRows, heldout: int, seed: int) -> tuple[StoredRows, StoredRows]:
    """(training, held-out): one row of each of `heldout` prompts, drawn by seed; all rows of those prompts leave the
    training."""
    first = {row.prompt_tokens: row for row in reversed(source.rows)}
    if heldout >= len(first):
        reason = f"data.heldout {heldout} leaves nothing to train on: {len(first)} distinct prompts; lower it"
        raise DataError(source.name, [(source.name, reason)])
    prompts = sorted(first, key=lambda tokens: first[tokens].id)
    chosen = set(random.Random(seed).sample(prompts, heldout))
    rest = _renumbered([row for row in source.rows if row.prompt_tokens not in chosen])
    kept = _renumbered([first[tokens] for tokens in prompts if tokens in chosen])
    return (
        replace(source, rows=rest, read=len(rest) + source.skipped + source.dropped),
        StoredRows(source.name, kept, read=len(kept)),
    )


def _renumbered(rows: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(replace(row, id=i) for i, row in enumerate(rows))
