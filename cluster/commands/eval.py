"""`raylign eval`: one or more models on a recipe's held-out rows, by what the recipe trains.

In: a recipe (or a run directory), models to compare (directories, runs, hub ids), perhaps a judge. Out: a table or JSON
of means with intervals, and for two models the paired difference and the judge's win rate. Left out: the scores
themselves (cluster/comparison.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.commands.output import Json, print_json

if TYPE_CHECKING:
    from cluster.comparison import Answers
    from cluster.config import Config


def evaluate(
    config: Annotated[Path, typer.Argument(help="A recipe or a run directory: says rows, rewards and limits.")],
    models: Annotated[
        list[str] | None, typer.Option("--model", help="Model to evaluate; repeat it to compare. Default: the run's.")
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(help="Compare two models' responses: a language model, or module:function as in reward.judges."),
    ] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="key.path=value ...")] = None,
    as_json: Json = False,
) -> None:
    """Compare models on held-out rows.

    With --json an object: config, metric, rows, models (each with model, scores: an interval by name, and perplexity,
    null but for conversations), difference (null unless two models were given: of, minus, and an interval of the
    metric's paired difference) and judge (null without one: wins, ties and losses of the second model, without_verdict,
    and win_rate, an interval). An interval: mean, low and high, at 95 %.
    """

    def compared() -> dict[str, Any]:
        return _compare(config, models, judge, overrides or [])

    if as_json:
        print_json(compared)
    else:
        _show(compared())


def _compare(config: Path, models: list[str] | None, judge: str | None, overrides: list[str]) -> dict[str, Any]:
    """What --json prints."""
    from cluster.comparison import answers, verdicts
    from cluster.config import load_config
    from cluster.config.loading.load import config_of
    from cluster.run.checkpoints.policies import latest_policy
    from cluster.run.directory import RunDirectory

    if config.is_dir():
        _refuse_pipeline(config)
        run = RunDirectory.attach(config)
        loaded = config_of(run.read_config(), str(run.config_file), overrides)
        models = models or [loaded.model.path, str(latest_policy(run))]
    else:
        loaded = load_config(config, overrides)
        models = models or [loaded.model.path]
    _refuse_what_cannot_be_compared(loaded, config, models, judge)
    found = {name: answers(loaded, name) for name in models}
    judged = None
    if judge is not None:
        first, second = found.values()
        judged = _counted(verdicts(loaded, judge, first, second).tolist())
    return {"config": str(config), **_means(_metric(loaded), found), "judge": judged}


def _refuse_pipeline(directory: Path) -> None:
    from cluster.errors import UserError
    from cluster.run.stages import PipelineDirectory

    pipeline = PipelineDirectory(directory)
    if pipeline.config_file.is_file():
        stages = ", ".join(str(run) for _, run in pipeline.runs())
        raise UserError(f"{directory} is a pipeline; give the run directory of one of its stages: {stages}")


def _refuse_what_cannot_be_compared(config: Config, source: Path, models: list[str], judge: str | None) -> None:
    from cluster.errors import UserError

    if config.data.heldout == 0:
        raise UserError(f"{source}: there are no held-out rows to evaluate on; add data.heldout=200")
    if config.row_kind == "responses" or config.algorithm.on_preferences:
        raise UserError(
            f"{source}: {config.algorithm.name} has nothing that a model alone is evaluated by; give an online recipe "
            "(rewards), an sft recipe (perplexity) or a reward_model recipe (accuracy), and --model"
        )
    if judge is not None and (len(models) != 2 or models[0] == models[1] or not config.algorithm.online):
        raise UserError(
            "--judge compares the responses of two models: give an online recipe and --model twice, each time another"
        )


def _metric(config: Config) -> str:
    return {"conversations": "logprob", "pairs": "accuracy"}.get(config.row_kind, config.evaluation.metric)


def _means(metric: str, found: Mapping[str, Answers]) -> dict[str, Any]:
    """Each model's mean scores, and by how much the second of two is better."""
    from cluster.run.records.evaluation import difference_interval, mean_interval

    models = []
    for model, answers in found.items():
        scores = {n: asdict(mean_interval(s.tolist())) for n, s in answers.scores.items() if n != "tokens"}
        models.append({"model": model, "scores": scores, "perplexity": _perplexity(answers)})
    difference = None
    if len(found) == 2:
        (name, before), (other, after) = ((model, answers.scores[metric]) for model, answers in found.items())
        gain = difference_interval(after.tolist(), before.tolist())
        difference = None if gain is None else {"of": other, "minus": name, **asdict(gain)}
    first = next(iter(found.values()))
    return {"metric": metric, "rows": len(first.scores[metric]), "models": models, "difference": difference}


def _perplexity(answers: Answers) -> float | None:
    if "tokens" not in answers.scores:
        return None
    logprobs, tokens = answers.scores["logprob"], answers.scores["tokens"]
    return math.exp(-float((logprobs * tokens).sum() / max(tokens.sum(), 1)))


def _counted(verdicts: list[float]) -> dict[str, Any]:
    """What became of the second model's responses: 1 a win, 0.5 a tie, 0 a loss, NaN no verdict."""
    from cluster.run.records.evaluation import mean_interval

    known = [v for v in verdicts if not math.isnan(v)]
    wins, ties = known.count(1.0), known.count(0.5)
    return {
        "wins": wins,
        "ties": ties,
        "losses": len(known) - wins - ties,
        "without_verdict": len(verdicts) - len(known),
        "win_rate": asdict(mean_interval(known)),
    }


def _show(found: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    first = found["models"][0]
    likelihood = first["perplexity"] is not None
    headings = (*first["scores"], *(["perplexity"] if likelihood else []))
    table = Table("model", *headings, title="held-out mean (95 % interval)")
    for each in found["models"]:
        texts = [f"{c['mean']:.3f} ({c['low']:.3f} to {c['high']:.3f})" for c in each["scores"].values()]
        table.add_row(each["model"], *texts, *([f"{each['perplexity']:.3f}"] if likelihood else []))
    console = Console()
    console.print(table)
    metric, gain = found["metric"], found["difference"]
    if gain is not None:
        settled = "" if gain["low"] > 0 or gain["high"] < 0 else " (not settled: the interval holds zero)"
        console.print(
            f"{metric}: {gain['of']} - {gain['minus']} = {gain['mean']:+.3f} ({gain['low']:+.3f} to "
            f"{gain['high']:+.3f}), paired{settled}"
        )
    elif len(found["models"]) == 2:
        console.print(f"{metric}: no held-out row has a score of both models, so there is no difference to tell")
    if found["judge"] is not None:
        _show_verdicts([each["model"] for each in found["models"]], found["judge"])


def _show_verdicts(models: Sequence[str], judged: Mapping[str, Any]) -> None:
    from rich.console import Console

    rate = judged["win_rate"]
    counts = f"wins {judged['wins']}, ties {judged['ties']}, loses {judged['losses']}"
    Console().print(
        f"judge, both orders: {models[1]} {counts} against {models[0]} ({judged['without_verdict']} without a "
        f"verdict); win rate {rate['mean']:.3f} ({rate['low']:.3f} to {rate['high']:.3f}), a tie being half a win"
    )
