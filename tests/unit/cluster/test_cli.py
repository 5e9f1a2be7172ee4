"""The command line: verbs come from entry points, only the asked one is loaded, and each ending has its exit code."""

import inspect
import json
import os
import re
import subprocess
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


def test_a_mistyped_verb_is_told_the_nearest_without_loading_any(run):
    code, _, err = run("brokn")
    assert (code, "No such command 'brokn'. Did you mean 'broken'?" in err) == (2, True)


def test_help_tells_of_every_verb_what_it_does(run, monkeypatch):
    points = [EntryPoint("done", f"{HERE}:done", cli.GROUP)]
    monkeypatch.setattr(cli, "entry_points", lambda group: points)
    code, out, _ = run("--help")
    assert code == 0
    assert re.search(r"done\s+Say a word\.", out) and "--install-completion" in out


def test_the_project_declares_check_doctor_init_and_train():
    assert {"check", "doctor", "init", "train"} <= DECLARED.keys()


@pytest.mark.parametrize("verb", sorted(DECLARED))
def test_every_declared_verb_loads_and_says_what_it_does(verb):
    function = EntryPoint(verb, DECLARED[verb], cli.GROUP).load()
    assert inspect.getdoc(function)
    typer.Typer().command()(function)


COMPLETE = """
import json, sys
from importlib.metadata import EntryPoint
from cluster import cli
verbs = json.loads(sys.argv.pop())
cli.entry_points = lambda group: [EntryPoint(name, value, group) for name, value in verbs.items()]
sys.argv[0] = "raylign"
try:
    cli.main()
finally:
    print("loaded", *sorted({"torch", "ray", "vllm", "transformers", "numpy"} & set(sys.modules)), file=sys.stderr)
"""
"""The command line as its script starts it, with this checkout's verbs."""


def shell(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", COMPLETE, *arguments, json.dumps(DECLARED)],
        env={**os.environ, **environment},
        cwd=PROJECT.parent,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("line", "word", "completed"),
    [
        ("raylign tra", 1, ["trace", "train"]),
        ("raylign ", 1, sorted(DECLARED)),
        ("raylign train --re", 2, ["--resume"]),
        ("raylign train recipe.yaml --run", 3, ["--run-dir"]),
        ("raylign init --recipe gpu/sa", 3, ["gpu/safe_ppo"]),
        ("raylign zzz", 1, []),
    ],
)
def test_bash_completes_verbs_options_and_recipes_without_an_engine(line, word, completed):
    done = shell(_RAYLIGN_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=str(word))
    assert done.stdout.split() == completed
    assert done.stderr.split() == ["loaded"]


def test_bash_is_shown_and_given_a_completion_that_asks_the_command_line(tmp_path):
    detection = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    shown = shell("--show-completion", "bash", **detection)
    assert shown.returncode == 0
    assert "_RAYLIGN_COMPLETE=complete_bash" in shown.stdout and shown.stdout.rstrip().endswith(" raylign")
    done = shell("--install-completion", "bash", HOME=str(tmp_path), **detection)
    assert (done.returncode, "completion installed" in done.stdout) == (0, True)
    (script,) = (tmp_path / ".bash_completions").iterdir()
    assert script.read_text().strip() == shown.stdout.strip()
    assert str(script) in (tmp_path / ".bashrc").read_text()


def test_the_shown_completion_works_in_bash(tmp_path):
    """As a person's shell uses it, with a `raylign` on its path."""
    program = tmp_path / "raylign"
    code = COMPLETE.replace("json.loads(sys.argv.pop())", f"json.loads({json.dumps(DECLARED)!r})")
    program.write_text(f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(PROJECT.parent)!r})\n{code}")
    program.chmod(0o755)
    script = (
        "source <(raylign --show-completion bash 2>/dev/null); COMP_WORDS=(raylign sub); COMP_CWORD=1\n"
        '_raylign_completion raylign 2>/dev/null; echo "${COMPREPLY[@]}"'
    )
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    done = subprocess.run(["bash", "-c", script], env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.stdout.split() == ["submit"], done.stderr
