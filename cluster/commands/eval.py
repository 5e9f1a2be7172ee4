"""`raylign eval`: one or more models on a recipe's held-out rows, by what the recipe trains.

In: a recipe (or a run directory), models to compare (directories, runs, hub ids), perhaps a judge. Out: a table of
means with intervals, and for two models the paired difference and the judge's win rate. Left out: the scores
themselves (cluster/comparison.py).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

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
) -> None:
    """Compare models on held-out rows."""
    from cluster.comparison import answers, verdicts
    from cluster.config import load_config
    from cluster.run.checkpoints.policies import latest_policy
    from cluster.run.directory import RunDirectory

    if config.is_dir():
        _refuse_pipeline(config)
        run = RunDirectory.attach(config)
        loaded = load_config(run.config_file, overrides or [])
        models = models or [loaded.model.path, str(latest_policy(run))]
    else:
        loaded = load_config(config, overrides or [])
        models = models or [loaded.model.path]
    _refuse_what_cannot_be_compared(loaded, config, models, judge)
    found = {name: answers(loaded, name) for name in models}
    _show(_metric(loaded), found)
    if judge is not None:
        first, second = found.values()
        _show_verdicts(models, verdicts(loaded, judge, first, second).tolist())


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
    if judge is not None and (len(models) != 2 or not config.algorithm.online):
        raise UserError("--judge compares the responses of two models: give an online recipe and --model twice")


def _metric(config: Config) -> str:
    return {"conversations": "logprob", "pairs": "accuracy"}.get(config.row_kind, config.evaluation.metric)


def _show(metric: str, found: dict[str, Answers]) -> None:
    from rich.console import Console
    from rich.table import Table

    from cluster.run.records.evaluation import difference_interval, mean_interval

    first = next(iter(found.values()))
    names = [name for name in first.scores if name != "tokens"]
    likelihood = "tokens" in first.scores
    table = Table("model", *names, *(["perplexity"] if likelihood else []), title="held-out mean (95 % interval)")
    for model, answers in found.items():
        cells = [mean_interval(answers.scores[name].tolist()) for name in names]
        texts = [f"{c.mean:.3f} ({c.low:.3f} to {c.high:.3f})" for c in cells]
        if likelihood:
            logprobs, tokens = answers.scores["logprob"], answers.scores["tokens"]
            texts.append(f"{math.exp(-float((logprobs * tokens).sum() / max(tokens.sum(), 1))):.3f}")
        table.add_row(model, *texts)
    console = Console()
    console.print(table)
    if len(found) == 2:
        (name, before), (other, after) = ((model, answers.scores[metric]) for model, answers in found.items())
        gain = difference_interval(after.tolist(), before.tolist())
        if gain is None:
            console.print(f"{metric}: no held-out row has a score of both models, so there is no difference to tell")
            return
        settled = "" if gain.low > 0 or gain.high < 0 else " (not settled: the interval holds zero)"
        console.print(
            f"{metric}: {other} - {name} = {gain.mean:+.3f} ({gain.low:+.3f} to {gain.high:+.3f}), paired{settled}"
        )


def _show_verdicts(models: list[str], verdicts: list[float]) -> None:
    from rich.console import Console

    from cluster.run.records.evaluation import mean_interval

    known = [v for v in verdicts if not math.isnan(v)]
    rate = mean_interval(known)
    wins, ties = known.count(1.0), known.count(0.5)
    Console().print(
        f"judge, both orders: {models[1]} wins {wins}, ties {ties}, loses {len(known) - wins - ties} against "
        f"{models[0]} ({len(verdicts) - len(known)} without a verdict); win rate {rate.mean:.3f} ({rate.low:.3f} to "
        f"{rate.high:.3f}), a tie being half a win"
    )
