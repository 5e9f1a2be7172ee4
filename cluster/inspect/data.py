"""The data and the rewards, tried before a run: every row read, three samples rendered, each reward function called.

In: a Config and the policy's tokenizer. Out: `DataFindings`, `RewardFindings`, and Problems for what is wrong.
Reward functions run in their own process, as in a run. Left out: reward models (their files are examine.py's), Ray.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from actors.data import DataError, PreferencePair, PromptOrder
from actors.data.demonstrations import Demonstration
from actors.data.errors import LISTED
from actors.data.judged import JudgedResponse
from actors.data.rows import read_rows
from actors.data.stored import StoredRow
from actors.data.tokenizer import Tokenizer
from actors.rewards.runner import RewardError, RewardRunner
from actors.rewards.spec import RewardSpec
from cluster.config import Config, Problem
from cluster.inputs.online import (
    OnlineInputs,
    judge_functions,
    load_inputs,
    prompt_settings,
    prompt_window,
    reward_specs,
)
from cluster.inputs.stored import StoredInputs, load_stored_inputs, stored_settings

RENDERED = 3
IGNORANT = "I do not know."
"""The response no task rewards: tried beside the answer that the data hold."""


class Reader(Tokenizer, Protocol):
    """A tokenizer that also says what ids stand for."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str: ...


@dataclass(frozen=True, slots=True)
class Rendered:
    """One sample as the policy reads it. text: decoded ids, special tokens shown; columns: what the rewards see."""

    title: str
    text: str
    tokens: int
    columns: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class DataFindings:
    """rows: what became of what was read, by name, in order. samples: the first of the training order."""

    name: str
    rows: Mapping[str, int]
    longest: int
    window: int
    samples: tuple[Rendered, ...]
    inputs: OnlineInputs | StoredInputs


@dataclass(frozen=True, slots=True)
class RewardFindings:
    """For each part its mean score over the samples tried: of the data's answer, and of IGNORANT. None: no score."""

    answered: Mapping[str, float | None]
    ignorant: Mapping[str, float | None]


def look_at_data(config: Config, tokenizer: Reader) -> tuple[DataFindings | None, list[Problem]]:
    """Read and tokenise all rows; every bad one is a Problem."""
    inputs: OnlineInputs | StoredInputs
    try:
        inputs = (load_inputs if config.algorithm.online else load_stored_inputs)(config, tokenizer)
    except DataError as error:
        return None, _listed(error)
    except ValueError as error:  # no chat template, or settings that the readers refuse
        return None, [Problem("data", str(error))]
    if isinstance(inputs, StoredInputs):
        return _stored(config, inputs, tokenizer), []
    return _prompts(config, inputs, tokenizer), []


def first_row_problems(config: Config) -> list[Problem]:
    """What is wrong with the source itself, without a tokenizer: no such file, task or parameter."""
    settings = prompt_settings(config) if config.algorithm.online else stored_settings(config)
    try:
        next(iter(read_rows(settings.origin)), None)
    except DataError as error:
        return _listed(error)
    return []


def _listed(error: DataError) -> list[Problem]:
    problems = [Problem(where, reason) for where, reason in error.problems[:LISTED]]
    if len(error.problems) > LISTED:
        problems.append(Problem("data", f"... and {len(error.problems) - LISTED} more bad rows"))
    return problems


def _prompts(config: Config, inputs: OnlineInputs, tokenizer: Reader) -> DataFindings:
    train, heldout = inputs.train, inputs.heldout
    counts = train.counts
    rows = {
        "read": counts.read,
        "to train on": len(train),
        "held out": len(heldout) if heldout else 0,
        "skipped as invalid": counts.skipped,
        "truncated": counts.truncated,
        "dropped as too long": counts.dropped,
        "duplicates left out": counts.duplicates,
        "left out as held-out questions": counts.heldout,
        "questions shared by both": len(train.questions & heldout.questions) if heldout else 0,
    }
    samples = [
        Rendered(
            f"prompt {row} ({train.rows[row].where})",
            tokenizer.decode(list(train.rows[row].token_ids), skip_special_tokens=False),
            len(train.rows[row].token_ids),
            train.rows[row].data,
        )
        for row in _first_rows(config, len(train))
    ]
    longest = max(len(row.token_ids) for row in (*train.rows, *(heldout.rows if heldout else ())))
    return DataFindings(train.name, rows, longest, prompt_window(config), tuple(samples), inputs)


def _stored(config: Config, inputs: StoredInputs, tokenizer: Reader) -> DataFindings:
    train, heldout = inputs.train, inputs.heldout
    prompts = [{row.prompt_tokens for row in part.rows} if part else set() for part in (train, heldout)]
    rows = {
        "read": inputs.read,
        "to train on": len(train),
        "held out": len(heldout) if heldout else 0,
        "skipped as invalid": train.skipped,
        "truncated": train.truncated,
        "dropped as too long": train.dropped,
        "left out as held-out prompts": inputs.read - train.read - (len(heldout) if heldout else 0),
        "prompts shared by both": len(prompts[0] & prompts[1]),
        "response tokens": sum(len(ids) for row in train.rows for ids in row.responses),
    }
    samples = [
        Rendered(f"{title} {number}", tokenizer.decode(ids, skip_special_tokens=False), len(ids), {})
        for number in _first_rows(config, len(train))
        for title, ids in _shown(train[number])
    ]
    return DataFindings(train.name, rows, train.longest, config.model.max_length, tuple(samples), inputs)


def _shown(row: StoredRow) -> Iterator[tuple[str, list[int]]]:
    """(title, ids) of each sequence that the row is learned from."""
    if isinstance(row, PreferencePair):
        yield "chosen of pair", [*row.prompt_tokens, *row.chosen_tokens]
        yield "rejected of pair", [*row.prompt_tokens, *row.rejected_tokens]
    elif isinstance(row, Demonstration):
        yield f"{sum(row.trained)} tokens learned of conversation", [*row.prompt_tokens, *row.token_ids]
    elif isinstance(row, JudgedResponse):
        yield f"labelled {row.label:g}, response", [*row.prompt_tokens, *row.responses[0]]
    else:
        raise TypeError(f"rows that are learned from are pairs, conversations or judged, got {type(row).__name__}")


def _first_rows(config: Config, count: int) -> list[int]:
    order = PromptOrder(count, config.seed, config.data.shuffle)
    return [row for row, _ in order.take(0, min(RENDERED, count))]


def scoring_functions(config: Config) -> list[RewardSpec]:
    """Every function that the run would load: rewards, costs, judges."""
    return [*reward_specs(config), *judge_functions(config)]


def start_rewards(config: Config) -> tuple[RewardRunner | None, list[Problem]]:
    """The reward process with every reward and cost function loaded; all that do not load are Problems. Judges are
    loaded too, and left alone: they compare samples that there are none of yet."""
    limit = config.reward.memory_limit_gb
    bytes_limit = None if limit is None else int(limit * (1 << 30))
    problems: list[Problem] = []
    runner = None
    for specs, section in ((reward_specs(config), "functions"), (judge_functions(config), "judges")):
        if not specs:
            continue
        try:
            started = RewardRunner(specs, memory_limit_bytes=bytes_limit)
        except RewardError as error:
            problems += [Problem(f"reward.{section}", line.strip()) for line in str(error).splitlines()[1:]]
            continue
        if section == "functions":
            runner = started
        else:
            started.close()
    if problems and runner is not None:
        runner.close()
        runner = None
    return runner, problems


def try_rewards(runner: RewardRunner, samples: Sequence[Rendered]) -> tuple[RewardFindings, list[Problem]]:
    """Score the data's answer and IGNORANT on each sample; a function that scores none of them is a Problem."""
    trials = [
        (sample, response)
        for sample in samples
        for response in (*([str(sample.columns["answer"])] if "answer" in sample.columns else []), IGNORANT)
    ]
    facts = [{"response_tokens": 8, "finish_reason": "stop"} for _ in trials]
    scores = runner.score(
        [sample.columns["prompt"] for sample, _ in trials],
        [response for _, response in trials],
        [{**sample.columns, **fact} for (sample, _), fact in zip(trials, facts, strict=True)],
    )
    ignorant = np.array([response is IGNORANT for _, response in trials])
    problems = []
    for spec in runner.specs:
        if np.isnan(scores.parts[spec.name]).all():
            reasons = [reason for _, reason in sorted(scores.errors.items()) if repr(spec.name) in reason]
            why = reasons[0] if reasons else "it raised or returned no finite number"
            wrong = f"scored none of {len(trials)} trial responses; the first: {why}"
            problems.append(Problem(f"reward.functions.{spec.name}", wrong))
    answered = {name: _mean(column[~ignorant]) for name, column in scores.parts.items()}
    unknown = {name: _mean(column[ignorant]) for name, column in scores.parts.items()}
    return RewardFindings(answered, unknown), problems


def _mean(values: np.ndarray) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None
