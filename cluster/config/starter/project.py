"""A shipped recipe's text, rewritten over rows and rewards that lie beside it.

In: the text of a recipe or a pipeline, and the same as a config. Out: the files of a project by name. The method, the
model and all sizes stay as they ship, with their comments: only `data`, the functions named `correct` and how many
held-out prompts an evaluation takes (all there are) change. Left out: the rows (rows.py).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from cluster.config.loading.pipeline import Pipeline
from cluster.config.schema import Config
from cluster.config.starter.rows import HELDOUT, Kind, kind_of_rows, rows_of

RECIPE, REWARDS = "recipe.yaml", "rewards.py"
COMMENT_AT = 29
"""Column of comments behind a key, as in the shipped recipes."""

SECTIONS = {
    "ray": "Where it runs: on this machine, or on a Ray cluster that is up already.",
    "algorithm": "The method. Its name sets its paper's choices, and each key here overrides one.",
    "model": "The model to tune: a directory, a Hugging Face hub id, or a file that a Python package carries.",
    "data": "The rows, and how many are kept apart. A JSONL or Parquet file, a `datasets` directory or a hub id.",
    "reward": "What a response is worth: a weighted sum of functions, reward models and judges.",
    "rollout": "The engines that generate: prompts a step, and how responses are drawn.",
    "learner": "The optimiser, and how an update is cut to fit the memory.",
    "critic": "The value model that PPO learns beside the policy.",
    "weights": "How new weights travel to the engines.",
    "evaluation": "How often held-out rows are looked at; their metric decides which model is the best.",
    "checkpoint": "How often the run commits what --resume goes on from.",
    "defaults": "What all stages share.",
    "stages": "Runs in their order. `stage:NAME` is the model that a stage has exported.",
}
"""What stands above each section."""

REWARDS_TEXT = '''\
"""What a response is worth. The recipe names a function as `rewards.py:NAME`; add more and give each a weight there.

A function gets one sample: the prompt's text, the response's text, and `data`, the row's other columns with
`response_tokens` and `finish_reason`. Arguments set in the recipe (`args: {key: value}`) arrive as keywords. An
exception, None or a value that is not finite means "no score", never 0. `async def` is awaited concurrently.
"""

import re
from collections.abc import Mapping
from typing import Any


def correct(prompt: str, response: str, data: Mapping[str, Any]) -> float:
    """1 if the last whole number of the response is the row's answer, else 0."""
    numbers = re.findall(r"(?<!\\d)-?\\d+", response)
    return float(bool(numbers) and int(numbers[-1]) == int(data["answer"]))
'''

CORRECT = re.compile(r"(?m)^(?P<key> +correct: \{function: )\w+(?P<weight>, weight: [\d.]+)?(?:, args: \{[^{}]*\})?\}")
RUNS_ON = re.compile(r"(?m)^# Runs on: (?P<what>.+?)\.(?: On a GPU: .+)?$")

Block = tuple[str, list[str]]


def starter_files(text: str, run: Config | Pipeline, recipe: str, name: str) -> dict[str, str]:
    """The files by name. text: the shipped recipe, run: what it says, recipe: its name. name: of the new run."""
    stages = {stage.name: stage.config for stage in run.stages} if isinstance(run, Pipeline) else {"": run}
    kinds = {stage: kind_of_rows(config) for stage, config in stages.items()}
    blocks = [
        (key, _stages(lines, kinds) if key == "stages" else _section(key, lines, name, kinds))
        for key, lines in _blocks(text.splitlines(), 0)
        if key
    ]
    above = {key: f"# {SECTIONS[key]}\n" for key, _ in blocks if key in SECTIONS}
    sections = [above.get(key, "") + "\n".join(lines).strip("\n") + "\n" for key, lines in blocks]
    heads = [section for section, (key, _) in zip(sections, blocks, strict=True) if key not in SECTIONS]
    rest = [section for section, (key, _) in zip(sections, blocks, strict=True) if key in SECTIONS]
    written, changed = CORRECT.subn(rf'\g<key>"{REWARDS}:correct"\g<weight>}}', "\n".join(["".join(heads), *rest]))
    rewards = {REWARDS: REWARDS_TEXT} if changed else {}
    return {RECIPE: _header(text, recipe) + written, **rewards, **{k.file: rows_of(k) for k in kinds.values()}}


def _header(text: str, recipe: str) -> str:
    """What stands first: where this comes from, where it runs, where its paths lead."""
    found = RUNS_ON.search(text)
    return (
        f"# Begun from Raylign's recipe {recipe}, over rows that lie beside this file: put your own in their place.\n"
        "# Relative paths are looked up in the working directory, then beside this file.\n"
        + (f"# Runs on: {found['what']}.\n" if found else "")
    )


def _section(key: str, lines: list[str], name: str, kinds: dict[str, Kind]) -> list[str]:
    if key == "name":
        return [_commented(f"name: {name}", "its runs go to runs/NAME, or where --run-dir says")]
    if key == "data":
        return _data(kinds[""], 0, heldout=True)
    if key == "evaluation":
        return [re.sub(r", prompts: \d+", "", line) for line in lines]
    if key == "defaults":
        return _joined(lines, 2, {"data": [f"  data: {{heldout: {HELDOUT}}}"]})
    return lines


def _stages(lines: list[str], kinds: dict[str, Kind]) -> list[str]:
    """Each stage over its own rows; one that takes the defaults' data gets a section of its own."""
    out, stages = lines[:1], _blocks(lines[1:], 2)
    for _, stage in stages:
        named = re.match(r"  - name: (\w+)", stage[0])
        assert named is not None, f"a stage of a shipped recipe begins with its name, got {stage[0]!r}"
        out += _joined(stage, 4, {"data": _data(kinds[named[1]], 4, heldout=False)})
    return out


def _joined(lines: list[str], indent: int, replaced: dict[str, list[str]]) -> list[str]:
    """The lines with some of their blocks replaced; a replaced key that they lack comes after their first block."""
    blocks = _blocks(lines, indent)
    lacking = [(key, new) for key, new in replaced.items() if key not in dict(blocks)]
    first = next(i for i, (key, _) in enumerate(blocks) if key) + 1
    blocks[first:first] = lacking
    return [line for key, own in blocks for line in (_ending(replaced[key], own) if key in replaced else own)]


def _ending(new: list[str], old: Sequence[str]) -> list[str]:
    """The new lines, with the empty ones that the old end with."""
    return [*new, *[""] * (len(old) - len("\n".join(old).rstrip("\n").split("\n")))]


def _blocks(lines: Sequence[str], indent: int) -> list[Block]:
    """(key, its lines) of a YAML mapping written at this depth; what stands before the first has no key."""
    key_at = re.compile(rf"^ {{{indent}}}(?:- )?(\w+):")
    blocks: list[Block] = [("", [])]
    for line in lines:
        if (found := key_at.match(line)) is not None:
            blocks.append((found[1], []))
        blocks[-1][1].append(line)
    return blocks if blocks[0][1] else blocks[1:]


def _data(kind: Kind, indent: int, heldout: bool) -> list[str]:
    keys = [_commented(f"{' ' * (indent + 2)}path: {kind.file}", kind.row)]
    keys += [f"{' ' * (indent + 2)}{line}" for line in kind.data]
    if heldout:
        keys.append(_commented(f"  heldout: {HELDOUT}", "rows for evaluation, none of them in training"))
    return [f"{' ' * indent}data:", *keys]


def _commented(text: str, comment: str) -> str:
    return f"{text:<{COMMENT_AT}}# {comment}" if len(text) < COMMENT_AT else f"{text}   # {comment}"
