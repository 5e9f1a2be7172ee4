"""`raylign eval`: models on held-out rows, by rewards, by likelihood, by pairs, and by a judge asked in both orders."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from cluster.cli import _app
from cluster.commands.eval import _counted, _show_verdicts
from cluster.comparison import answers, verdicts
from cluster.config import load_config
from cluster.errors import UserError
from tests.integration.runs import recipe

SETTINGS = {"deterministic": False, "rollout": {"engine": "torch"}, "learner": {"backend": "torch"}}


@pytest.fixture(scope="module")
def other_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with its head's rows turned around: it answers, and otherwise."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("other") / "model"
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(model.get_input_embeddings().weight.flip(0))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


def evaluate(*arguments: object) -> str:
    result = CliRunner().invoke(_app(), ["eval", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def test_two_models_answer_the_same_prompts_and_a_judge_tells_them_apart(
    tiny_model: Path, other_model: Path, tmp_path: Path
) -> None:
    judge = tmp_path / "judge.py"
    judge.write_text("def prefer(prompt, response, data):\n    return float(response > data['other'])\n")
    config = load_config(recipe(tmp_path, tiny_model, **SETTINGS))
    one, two = answers(config, str(tiny_model)), answers(config, str(other_model))
    assert one.prompts == two.prompts and len(one.prompts) == 8
    assert one.responses != two.responses
    shares = [sum(c.isdigit() for c in text) / max(1, len(text)) for text in two.responses]
    np.testing.assert_allclose(two.scores["digits"], shares)
    asked = f"{judge}:prefer"
    found = verdicts(config, asked, one, two)
    assert found.tolist() == [
        float(b > a) if a != b else 0.5 for a, b in zip(one.responses, two.responses, strict=True)
    ]
    np.testing.assert_allclose(found + verdicts(config, asked, two, one), 1.0)
    assert verdicts(config, asked, one, one).tolist() == [0.5] * 8


def test_the_verdicts_are_told_with_ties_and_an_interval(capsys: pytest.CaptureFixture[str]) -> None:
    judged = _counted([1.0, 1.0, 0.5, 0.0, math.nan])
    assert [judged[key] for key in ("wins", "ties", "losses", "without_verdict")] == [2, 1, 1, 1]
    _show_verdicts(["base", "tuned"], judged)
    said = " ".join(capsys.readouterr().out.split())
    assert "tuned wins 2, ties 1, loses 1 against base (1 without a verdict); win rate 0.625" in said


def test_models_are_compared_by_the_perplexity_of_conversations(
    tiny_model: Path, other_model: Path, tmp_path: Path
) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"say {i}", "completion": f"{i}."}) + "\n" for i in range(12)))
    path = tmp_path / "sft.yaml"
    tree = {
        "name": "sft",
        "algorithm": "sft",
        "model": {"path": str(tiny_model), "dtype": "float32", "max_length": 256},
        "data": {"path": str(data), "heldout": 4},
    }
    path.write_text(json.dumps(tree))
    said = evaluate(path, "--model", tiny_model, "--model", other_model)
    assert "perplexity" in said and "logprob:" in said and "paired" in said


@pytest.mark.parametrize(
    ("algorithm", "arguments", "reason"),
    [
        ("dpo", [], "dpo has nothing that a model alone is evaluated by"),
        ("sft", ["--judge", "m:f"], "--judge compares the responses of two models"),
    ],
)
def test_what_cannot_be_compared_is_said_in_a_sentence(
    algorithm: str, arguments: list[str], reason: str, tiny_model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "r.yaml"
    tree = {
        "name": "r",
        "algorithm": algorithm,
        "model": {"path": str(tiny_model), "max_length": 256},
        "data": {"path": str(tmp_path / "none.jsonl"), "heldout": 4},
    }
    path.write_text(json.dumps(tree))
    with pytest.raises(UserError, match=reason):
        CliRunner().invoke(_app(), ["eval", str(path), *arguments], catch_exceptions=False)
