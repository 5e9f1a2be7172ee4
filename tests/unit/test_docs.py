"""README and docs keep their word: links lead to files, commands parse, recipes load, code runs, targets exist, and the
page on adding a method, run as it stands, adds one. Nothing is trained."""

from __future__ import annotations

import ast
import asyncio
import functools
import importlib
import inspect
import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

from actors.data.demonstrations import DemonstrationSettings, load_demonstrations
from actors.data.judged import JudgedSettings, load_judged
from actors.data.preferences import PreferenceSettings, load_preferences
from actors.data.prompts import PromptSettings, load_prompts
from actors.data.rows import Origin
from actors.rewards.spec import BUILT_IN
from cluster.config import load_config
from cluster.config.loading.load import read_tree, validate
from cluster.config.loading.pipeline import merge, pipeline_of
from cluster.config.sections.algorithm import METHODS
from cluster.config.sections.section import name_only
from tests.fixtures.pages import DOCS, ROOT, Piece, blocks, links, spans
from tests.fixtures.tiny_model import make_tiny_tokenizer
from tests.unit.rooms import MAY_IMPORT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
USUAL = "deploy/recipes/grpo_demo.yaml"
"""What a part of a recipe is laid over, unless its mark names another."""
ROWS = {
    "prompts": lambda path: load_prompts(PromptSettings(path=path), make_tiny_tokenizer()),
    "pairs": lambda path: load_preferences(PreferenceSettings(Origin(path=path)), make_tiny_tokenizer()),
    "judged": lambda path: load_judged(JudgedSettings(Origin(path=path)), make_tiny_tokenizer()),
    "demonstrations": lambda path: load_demonstrations(
        DemonstrationSettings(Origin(path=path), messages_column="messages"), make_tiny_tokenizer()
    ),
}
LONGEST_README = 120

TRIAL = """
import torch
from torch import Tensor
from learners.methods import presets
from learners.methods.presets import Preset, PolicyLossSettings
from learners.methods.row_advantages import ROW_ADVANTAGES, Rows, row_advantage

{function}

presets.PRESETS |= {{
{line}
}}
presets.ADVANTAGES = (*presets.ADVANTAGES, "median")

from cluster.config.resolve import resolve_method
from tests.fixtures.configs import GRPO, config

found = resolve_method(config(GRPO.replace("name: grpo", "name: median_po")))
assert found.preset.advantage == "median", found

import numpy as np
from learners.experience import build_experience
from learners.methods.method import StepInputs
from tests.fixtures.columns import batch_of, sample, scores_of

batch = batch_of(*(sample(0, i, [5], [6, 7]) for i in range(3)))
made = build_experience(StepInputs(0, batch, scores_of(1.0, 4.0, 6.0)), found)
assert made.advantages_BT[:, 0].tolist() == [-3.0, 0.0, 2.0], made.advantages_BT
print("learned")
"""


def named(pieces: list[Piece]) -> list[Any]:
    """For a test that is run once for each."""
    assert pieces
    return [pytest.param(piece, id=piece.where) for piece in pieces]


def test_the_readme_is_a_screen_and_a_half():
    assert len((ROOT / "README.md").read_text().splitlines()) <= LONGEST_README


def test_every_link_leads_to_a_file():
    found = links()
    assert len(found) > 150
    local = [link for link in found if "://" not in link.text and not link.text.startswith("#")]
    absent = [link for link in local if not (link.page.parent / link.text.partition("#")[0]).exists()]
    assert [f"{link.where} {link.text}" for link in absent] == []


def test_every_file_that_a_page_names_exists():
    """In code spans: paths from the root, and files of bench and tests by their module's name."""
    tops = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
    paths = [span for span in spans() if re.fullmatch(r"[\w./-]+", span.text) and "/" in span.text]
    mine = [span for span in paths if span.text.split("/")[0] in tops - {"build", "runs"}]
    benches = [Piece(s.page, s.line, s.kind, f"bench/{s.text}.py") for s in spans() if s.text.startswith("bench_")]
    assert len(mine) > 10 and len(benches) > 5
    assert [f"{span.where} {span.text}" for span in (*mine, *benches) if not (ROOT / span.text).exists()] == []


# --- commands ---


@functools.cache
def command_line() -> typer.Typer:
    """The verbs that pyproject names, with their own arguments and options, doing nothing."""
    app = typer.Typer()
    app.callback()(lambda: None)
    for verb, entry in PROJECT["entry-points"]["raylign.commands"].items():
        module, _, function = entry.partition(":")
        app.command(verb)(idle(getattr(importlib.import_module(module), function)))
    return app


def idle(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def nothing(*args: object, **options: object) -> None:
        """Only what is given is looked at."""

    return nothing


def refusal(command: str) -> str:
    """What the command line says against the words after `raylign`; "" where it takes them."""
    words = shlex.split(re.sub(r"[\[\]]|\.\.\.", "", command), comments=True)
    said = ["1" if word in ("N", "STEP") else word for word in words]
    done = CliRunner().invoke(command_line(), said[1:])
    return "" if done.exit_code == 0 else " ".join(done.output.split())


def commands() -> Iterator[tuple[Piece, str]]:
    for block in blocks("console", "text", "bash", "indented"):
        for line in block.text.splitlines():
            if line.strip().startswith("raylign "):
                yield block, line.strip()


def test_every_command_in_a_block_is_taken_by_the_command_line():
    found = list(commands())
    assert len(found) > 25
    assert [f"{block.where} {line}: {said}" for block, line in found if (said := refusal(line))] == []


def test_every_command_within_a_sentence_is_too_but_may_leave_its_arguments_out():
    found = [span for span in spans() if span.text.startswith("raylign ") and "COMMAND" not in span.text]
    assert len(found) > 25
    refused = [(span, said) for span in found if (said := refusal(span.text)) and "Missing argument" not in said]
    assert [f"{span.where} {span.text}: {said}" for span, said in refused] == []


@pytest.mark.parametrize(
    ("command", "word"),
    [
        ("raylign trian x.yaml", "No such command"),
        ("raylign train x.yaml --resum", "No such option"),
        ("raylign scale runs/x --rollout many", "Invalid value"),
    ],
)
def test_a_command_that_is_wrong_would_be_seen(command, word):
    assert word in refusal(command)


def test_every_make_target_that_is_named_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    texts = [*spans(), *blocks("console", "text", "indented")]
    asked = {(p.where, target) for p in texts for target in re.findall(r"(?:^|\s)make ([a-z-]+)", f" {p.text}")}
    assert len(asked) > 15
    assert [(where, target) for where, target in asked if target not in targets] == []


# --- recipes ---


def whole(text: str) -> dict[str, Any]:
    tree = yaml.safe_load(text)
    return {**tree, **({"algorithm": name_only(tree["algorithm"])} if "algorithm" in tree else {})}


def over(tree: dict[str, Any], recipe: str) -> list[str]:
    """Problems of a part of a recipe, laid over a whole one."""
    under = read_tree(ROOT / recipe)
    merged = merge({**under, "algorithm": name_only(under["algorithm"])}, tree)
    return [str(problem) for problem in validate(merged)[1]]


@pytest.mark.parametrize("block", named(blocks("yaml")))
def test_every_yaml_block_is_a_pipeline_a_recipe_or_a_part_of_one(block, tmp_path):
    if "stages" in yaml.safe_load(block.text):
        path = tmp_path / "pipeline.yaml"
        path.write_text(block.text)
        assert pipeline_of(read_tree(path), block.where).stages
        return
    tree = whole(block.text)
    if {"model", "data", "algorithm"} <= tree.keys():
        assert validate(tree)[1] == []
        return
    assert over(tree, block.mark.removeprefix("recipe: ") or USUAL) == []


def test_a_part_of_a_recipe_that_is_wrong_would_be_seen():
    assert over({"rollout": {"samplng": {}}}, USUAL) == ["rollout.samplng: unknown key; did you mean rollout.sampling?"]
    assert over({"evaluation": {"metric": "absent"}}, USUAL) == [
        "evaluation.metric: must be one of correct, reward, got 'absent'"
    ]


def overrides(line: str) -> list[str]:
    return [word for word in shlex.split(line, comments=True) if re.match(r"[a-z_.]+=", word)]


def test_recipes_that_commands_name_load_with_the_overrides_beside_them():
    lines = [(block, line) for block, line in commands() if re.search(r"deploy/recipes/[\w/]+\.yaml", line)]
    assert len(lines) > 10
    for block, line in lines:
        recipe = re.search(r"deploy/recipes/[\w/]+\.yaml", line)[0]
        assert load_config(ROOT / recipe, overrides(line)), block.where


def test_every_method_has_a_row_with_a_recipe_that_loads_with_it():
    """A link, or a link with a star: the recipe with the method's name in it; all methods stand in the tables."""
    found = {}
    for line in (DOCS / "use" / "methods.md").read_text().splitlines():
        recipe = re.search(r"\[\w+\]\(\.\./\.\./(deploy/recipes/[\w/]+\.yaml)\)( \\\*)?[^|]*\|$", line)
        names = re.findall(r"`(\w+)`", line.split("|")[1]) if line.startswith("| `") and recipe else []
        for name in names:
            override = [f"algorithm={name}"] if recipe[2] else []
            found[name] = load_config(ROOT / recipe[1], override).algorithm.name
    assert {name: found.get(name) for name in METHODS} == {name: name for name in METHODS}


def test_every_recipe_has_a_row():
    text = (DOCS / "use" / "recipes.md").read_text()
    recipes = [path.relative_to(ROOT).as_posix() for path in (ROOT / "deploy" / "recipes").glob("*.yaml")]
    assert [recipe for recipe in recipes if recipe not in text] == []


# --- code ---


def test_the_method_on_the_page_is_a_function_a_line_and_a_name_in_a_recipe():
    (block,) = [block for block in blocks("python") if block.page.name == "add_a_method.md"]
    function, line = (part.split("\n", 1)[1] for part in re.split(r"(?m)^(?=# learners/)", block.text) if part)
    # In a process of its own: the registries of this one stay as they are.
    trial = TRIAL.format(function=function, line=line)
    done = subprocess.run([sys.executable, "-c", trial], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "learned" in done.stdout, done.stderr[-2000:]


@pytest.mark.parametrize("block", named([b for b in blocks("python") if b.page.name != "add_a_method.md"]))
def test_every_python_block_compiles_and_its_reward_scores(block):
    tree = ast.parse(block.text, block.where)
    rewards = [
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and {"data"} <= {a.arg for a in node.args.args}
    ]
    if not rewards:
        return
    space: dict[str, Any] = {}
    exec(compile(tree, block.where, "exec"), space)
    for name in rewards:
        right, wrong = (scored(space[name], response) for response in ("Paris", "I do not know."))
        assert right == 1.0 and 0.0 <= wrong <= 1.0


def scored(reward: Callable[..., Any], response: str) -> float:
    """One sample's score, however the function is written."""
    data = {
        "prompt": "What is the capital of France?",
        "answer": "Paris",
        "response_tokens": 3,
        "finish_reason": "stop",
    }
    many = "prompts" in inspect.signature(reward).parameters
    given = reward([data["prompt"]], [response], [data]) if many else reward(data["prompt"], response, data)
    found = asyncio.run(given) if inspect.isawaitable(given) else given
    return float(found[0] if many else found)


@pytest.mark.parametrize("block", named(blocks("json")))
def test_rows_on_the_pages_are_rows_of_their_kind(block, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(block.text)
    assert len(ROWS[block.mark.removeprefix("rows: ")](str(path))) == len(block.text.splitlines())


def test_the_page_s_reward_knows_the_page_s_rows():
    (rows,) = [block for block in blocks("json") if block.mark == "rows: prompts"]
    (code,) = [block for block in blocks("python") if "names_it" in block.text]
    space: dict[str, Any] = {}
    exec(compile(code.text, code.where, "exec"), space)
    data = [json.loads(line) for line in rows.text.splitlines()]
    assert [space["names_it"](row["prompt"], row["answer"], row) for row in data] == [1.0] * len(data)
    assert [space["names_it"](row["prompt"], "Atlantis", row) for row in data] == [0.0] * len(data)


def test_every_built_in_reward_has_a_row():
    text = (DOCS / "start" / "task.md").read_text()
    assert [name for name in BUILT_IN if f"| `{name}` |" not in text] == []


def test_every_verb_has_a_row():
    text = (DOCS / "start" / "commands.md").read_text()
    verbs = PROJECT["entry-points"]["raylign.commands"]
    assert [verb for verb in verbs if not re.search(rf"^\| .*`(?:raylign )?{verb}\b.*\|", text, re.MULTILINE)] == []


def test_every_room_stands_in_the_house():
    """With a row of its own, or as a room within its parent's."""
    text = (DOCS / "learn" / "how_it_works.md").read_text().partition("| room |")[2].partition("\n\n")[0]
    rows = {re.search(r"\[([\w/]+)\]", line)[1]: line for line in text.splitlines() if "](" in line}
    lacking = [
        room
        for room in MAY_IMPORT
        if room not in rows and f"`{room.rpartition('/')[2]}/`" not in rows.get(room.rpartition("/")[0], "")
    ]
    assert lacking == []


def nouns() -> Iterator[tuple[str, list[str], str]]:
    """(noun, types, the files' text) of each row of the table."""
    text = (DOCS / "learn" / "how_it_works.md").read_text().partition("| noun |")[2]
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        files = re.findall(r"\]\(\.\./\.\./([^)]+)\)", cells[-1])
        if len(cells) == 4 and files:
            yield cells[0], re.findall(r"`(\w+)`", cells[2]), "\n".join((ROOT / file).read_text() for file in files)


def test_every_noun_is_a_type_in_its_file():
    found = list(nouns())
    assert len(found) > 40
    absent = [
        f"{noun}: {name}"
        for noun, types, source in found
        for name in types
        if not re.search(rf"^(?:class|def|async def) {name}\b|^{name}\b.* = ", source, re.MULTILINE)
    ]
    assert absent == []


def test_every_metric_that_a_page_explains_is_one_that_the_code_writes():
    """Names without a part that a run fills in."""
    text = (DOCS / "use" / "watch.md").read_text().partition("| metric |")[2].partition("\n\n")[0]
    source = "\n".join(p.read_text() for room in ("cluster", "learners") for p in (ROOT / room).rglob("*.py"))
    names = [name for name in re.findall(r"`([a-z_/0-9]+)`", text)]
    assert len(names) > 20
    assert [name for name in names if f'"{name}"' not in source] == []
