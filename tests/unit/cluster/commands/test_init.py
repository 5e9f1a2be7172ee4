"""`raylign init`: a shipped recipe becomes a folder of one's own, with other rows and rewards, that works."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

from cluster.commands.init import DEFAULT, SHIPPED, init, shipped_recipes
from cluster.config import Config, Pipeline, load_config, load_run
from cluster.config.loading.paths import named_paths
from cluster.config.starter.project import REWARDS_TEXT, SECTIONS
from cluster.config.starter.rows import COUNT, HELDOUT
from cluster.errors import UserError
from cluster.inspect.examine import examine
from cluster.inspect.machine import GIB, Machine

NAMES = shipped_recipes()
LARGE = Machine(cpus=4, memory=64 * GIB, available=64 * GIB, gpus=())
FILES = {
    "grpo": {"prompts.jsonl", "rewards.py"},
    "ppo_rlhf": {"prompts.jsonl"},
    "dpo": {"pairs.jsonl"},
    "kto": {"judged.jsonl"},
    "sft": {"demonstrations.jsonl"},
    "reward_model": {"pairs.jsonl"},
    "rlhf_pipeline": {"demonstrations.jsonl", "pairs.jsonl", "prompts.jsonl", "rewards.py"},
    "gpu/online_dpo": {"prompts.jsonl", "rewards.py"},
}


def call(*arguments: str) -> Any:
    app = typer.Typer()
    app.command()(init)
    return CliRunner().invoke(app, arguments)


def made(folder: Path, recipe: str) -> Path:
    init(folder, recipe)
    return folder


def runs(file: Path) -> list[Config]:
    run = load_run(file)
    return [stage.config for stage in run.stages] if isinstance(run, Pipeline) else [run]


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_every_shipped_recipe_is_offered_and_named_in_the_help() -> None:
    assert set(NAMES) == {file.relative_to(SHIPPED).as_posix()[: -len(".yaml")] for file in SHIPPED.rglob("*.yaml")}
    shown = re.sub(r"[\s│]", "", call("--help").output)
    assert [name for name in NAMES if name not in shown] == []
    assert DEFAULT == "grpo" and {"gpu/dpo", "rlhf_pipeline"} < set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_method_model_and_sizes_are_those_that_ship(name: str, tmp_path: Path) -> None:
    """All but the run's name, the rows, how many are evaluated, and the functions named `correct`."""
    folder = made(tmp_path / "mine", name)
    for shipped, mine in zip(runs(SHIPPED / f"{name}.yaml"), runs(folder / "recipe.yaml"), strict=True):
        but = {"name": True, "data": True, "evaluation": {"prompts"}}
        before, after = (config.model_dump(exclude=but) for config in (shipped, mine))
        assert mine.name.partition(".")[0] == "mine"
        for functions in (before["reward"]["functions"], after["reward"]["functions"]):
            if "correct" in functions:
                functions["correct"] |= {"function": "", "args": {}}
        assert after == before


@pytest.mark.parametrize("name", NAMES)
def test_each_section_is_explained_and_each_file_it_names_is_written(name: str, tmp_path: Path) -> None:
    folder = made(tmp_path / "mine", name)
    text = (folder / "recipe.yaml").read_text()
    lines = text.splitlines()
    sections = [n for n, line in enumerate(lines) if re.match(r"\w+:", line) and line.split(":")[0] not in NO_SECTION]
    assert [lines[n] for n in sections if lines[n - 1] != f"# {SECTIONS[lines[n].split(':')[0]]}"] == []
    assert "reasoning_gym" not in text and max(map(len, lines)) <= 120
    named = {file.partition(":")[0] for run in runs(folder / "recipe.yaml") for keys, file in local(run)}
    assert {Path(file) for file in named} | {folder / "recipe.yaml"} == set(folder.iterdir())


NO_SECTION = ("name", "steps")


def local(run: Config) -> list[tuple[str, str]]:
    kinds = (".jsonl", ".py:correct")
    return [(".".join(keys), value) for keys, value in named_paths(run) if value.endswith(kinds)]


@pytest.mark.parametrize("name", FILES)
def test_the_rows_are_of_the_kind_that_the_method_learns_from(name: str, tmp_path: Path) -> None:
    folder = made(tmp_path / "mine", name)
    assert {file.name for file in folder.iterdir()} == FILES[name] | {"recipe.yaml"}
    columns = {
        "prompts.jsonl": {"prompt", "answer"},
        "pairs.jsonl": {"prompt", "chosen", "rejected"},
        "judged.jsonl": {"prompt", "completion", "label"},
        "demonstrations.jsonl": {"prompt", "completion"},
    }
    for file in FILES[name] - {"rewards.py"}:
        found = rows(folder / file)
        assert len({row["prompt"] for row in found}) == COUNT
        assert {frozenset(row) for row in found} == {frozenset(columns[file])}
    assert {run.data.heldout for run in runs(folder / "recipe.yaml")} == {HELDOUT}


def test_the_answers_are_right_and_the_better_side_of_a_pair_is_written_out(tmp_path: Path) -> None:
    folder = made(tmp_path / "mine", "rlhf_pipeline")
    for prompt, pair, said in zip(
        *(rows(folder / f"{n}.jsonl") for n in ("prompts", "pairs", "demonstrations")), strict=True
    ):
        expression = re.fullmatch(r".*: (\d+ [+-] \d+) =", prompt["prompt"])[1]
        answer = eval(expression)
        assert prompt["answer"] == str(answer)
        assert (pair["chosen"], pair["rejected"]) == (f"{expression} = {answer}", f"The answer is {answer}.")
        assert said["completion"] in (pair["chosen"], pair["rejected"])
    (watched,) = (run.reward.functions["written_out"] for run in runs(folder / "recipe.yaml") if run.reward.functions)
    assert re.search(watched.args["pattern"], rows(folder / "pairs.jsonl")[0]["chosen"])


@pytest.mark.parametrize(
    ("response", "score"), [("7 - 9 = -2", 1.0), ("-2", 1.0), ("It is -2.", 1.0), ("2", 0.0), ("", 0.0), ("-2 or 3", 0)]
)
def test_the_reward_is_the_last_number(response: str, score: float) -> None:
    own: dict[str, Any] = {}
    exec(REWARDS_TEXT, own)
    assert own["correct"]("7 - 9 =", response, {"answer": "-2"}) == score


@pytest.mark.parametrize("name", ["grpo", "kto", "sft", "reward_model", "safe_ppo"])
@pytest.mark.parametrize("where", ["parent", "folder"])
def test_it_passes_check_from_the_folder_and_from_its_parent(
    name: str, where: str, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made(tmp_path / "mine", name)
    monkeypatch.chdir(folder if where == "folder" else tmp_path)
    recipe = "recipe.yaml" if where == "folder" else "mine/recipe.yaml"
    config = load_config(recipe, [f"model.path={tiny_model}", "model.max_length=512"])
    found = examine(config, machine=LARGE)
    assert [str(problem) for problem in found.problems] == []
    assert (found.data.rows["to train on"], found.data.rows["held out"]) == (COUNT - HELDOUT, HELDOUT)
    if config.algorithm.online:
        assert (found.rewards.answered["correct"], found.rewards.ignorant["correct"]) == (1.0, 0.0)


def test_it_says_what_it_wrote_and_the_next_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("my sums").output == (
        "wrote my sums/recipe.yaml, my sums/rewards.py, my sums/prompts.jsonl\n"
        "next:  raylign check 'my sums/recipe.yaml'\n"
        "then:  raylign train 'my sums/recipe.yaml'\n"
    )
    assert load_config("my sums/recipe.yaml").name == "my-sums", "as far as a run may be called so"
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert "raylign check recipe.yaml\n" in call("--recipe", "sft").output
    assert load_config("recipe.yaml").name == "here"


def test_what_is_there_is_named_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "rewards.py").write_text("mine")
    (tmp_path / "recipe.yaml").write_text("mine too")
    with pytest.raises(UserError) as caught:
        init(tmp_path)
    assert str(caught.value) == f"{tmp_path}/recipe.yaml and {tmp_path}/rewards.py are there already; give another DIR"
    assert {file.name for file in tmp_path.iterdir()} == {"rewards.py", "recipe.yaml"}
    (tmp_path / "recipe.yaml").unlink()
    with pytest.raises(UserError, match=r"/rewards\.py is there already"):
        init(tmp_path)
    init(tmp_path, "sft")  # which writes none


def test_a_folder_that_cannot_be_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/deeper cannot be written to \(.*\); give another DIR"):
        init(tmp_path / "file" / "deeper")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("grpp", "there is no recipe grpp; did you mean grpo or"),
        ("gpu/rlo", "there is no recipe gpu/rlo; did you mean gpu/rloo"),
        ("../../etc/passwd", "there is no recipe ../../etc/passwd; there are dapo, dpo, "),
    ],
)
def test_an_unknown_recipe_is_refused_with_the_nearest(name: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        init(tmp_path / "mine", name)
    assert str(caught.value).startswith(said)
    assert not (tmp_path / "mine").exists()


def test_a_pipeline_s_stages_are_each_over_their_rows(tmp_path: Path) -> None:
    folder = made(tmp_path / "mine", "rlhf_pipeline")
    tree = yaml.safe_load((folder / "recipe.yaml").read_text())
    paths = {stage["name"]: stage["data"]["path"] for stage in tree["stages"]}
    assert paths == {"sft": "demonstrations.jsonl", "reward_model": "pairs.jsonl", "ppo": "prompts.jsonl"}
