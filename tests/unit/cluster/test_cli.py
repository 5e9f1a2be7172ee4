"""The command line: verbs come from entry points, only the asked one is loaded, and each ending has its exit code."""

import inspect
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import typer

from cluster import cli
from cluster.config import ConfigError, Problem
from cluster.errors import RunFailed, UserError

PROJECT = Path(__file__).resolve().parents[3] / "pyproject.toml"
DECLARED = tomllib.loads(PROJECT.read_text())["project"]["entry-points"][cli.GROUP]
HERE = __name__


def done(word: str = "well") -> None:
    """Say a word."""
    typer.echo(f"done {word}")


def wrong() -> None:
    raise ConfigError("r.yaml", [Problem("steps", "must be above 0, got 0")])


def refused() -> None:
    raise UserError("runs/a already holds a run; add --resume")


def failed() -> None:
    raise RunFailed("the learner died; resume with: raylign train r.yaml --resume")


def unhealthy() -> None:
    raise typer.Exit(1)


@pytest.fixture
def run(monkeypatch, capsys):
    """Call the command line with the verbs of this file; (exit code, stdout, stderr)."""
    verbs = {name: f"{HERE}:{name}" for name in ("done", "wrong", "refused", "failed", "unhealthy")}
    verbs["broken"] = "no_such_module:verb"
    points = [EntryPoint(name, value, cli.GROUP) for name, value in verbs.items()]
    monkeypatch.setattr(cli, "entry_points", lambda group: points if group == cli.GROUP else [])

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["raylign", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return ended.value.code, out, err

    return call


def test_a_verb_that_ends_well_exits_0(run):
    assert run("done", "--word", "so") == (0, "done so\n", "")


def test_a_config_error_prints_its_list_alone_and_exits_2(run):
    assert run("wrong") == (2, "", "r.yaml: 1 problem\n  steps: must be above 0, got 0\n")


def test_a_wrong_input_prints_its_sentence_alone_and_exits_2(run):
    assert run("refused") == (2, "", "runs/a already holds a run; add --resume\n")


def test_a_failed_run_prints_its_sentence_alone_and_exits_1(run):
    assert run("failed") == (1, "", "the learner died; resume with: raylign train r.yaml --resume\n")


def test_a_verb_may_choose_its_exit_code(run):
    assert run("unhealthy")[0] == 1


def test_a_verb_that_does_not_load_harms_no_other(run):
    assert run("done")[0] == 0


def test_an_unknown_verb_or_option_is_wrong_input(run, monkeypatch):
    assert run("done", "--loud")[0] == 2
    points = [EntryPoint("done", f"{HERE}:done", cli.GROUP)]
    monkeypatch.setattr(cli, "entry_points", lambda group: points)
    code, _, err = run("dnoe")
    assert (code, "dnoe" in err) == (2, True)


def test_the_project_declares_check_doctor_and_train():
    assert {"check", "doctor", "train"} <= DECLARED.keys()


@pytest.mark.parametrize("verb", sorted(DECLARED))
def test_every_declared_verb_loads_and_says_what_it_does(verb):
    function = EntryPoint(verb, DECLARED[verb], cli.GROUP).load()
    assert inspect.getdoc(function)
    typer.Typer().command()(function)
