"""`raylign eval`: one or two models on a recipe's held-out prompts, by its rewards.

In: a recipe (or a run directory), models to compare (directories, runs, hub ids). Out: a table of means with
intervals, and for two models the paired difference. Left out: judges and win rates.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cluster.config import Config


def evaluate(
    config: Annotated[Path, typer.Argument(help="A recipe or a run directory: says prompts, rewards and limits.")],
    models: Annotated[
        list[str] | None, typer.Option("--model", help="Model to evaluate; repeat it to compare. Default: the run's.")
    ] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="key.path=value ...")] = None,
) -> None:
    """Compare models on held-out prompts."""
    from cluster.config import load_config
    from cluster.errors import UserError
    from cluster.run.directory import RunDirectory
    from cluster.run.policies import latest_policy

    if config.is_dir():
        run = RunDirectory.attach(config)
        loaded = load_config(run.config_file, overrides or [])
        models = models or [loaded.model.path, str(latest_policy(run))]
    else:
        loaded = load_config(config, overrides or [])
        models = models or [loaded.model.path]
    if loaded.data.heldout == 0:
        raise UserError(f"{config}: there are no held-out prompts to evaluate on; add data.heldout=200")
    if not loaded.algorithm.online:
        raise UserError(f"{config}: has no rewards to evaluate by; give an online recipe and --model")
    scores = {name: _scores(loaded, name) for name in models}
    _show(loaded.evaluation.metric, scores)


def _scores(config: Config, model: str) -> dict[str, list[float]]:
    """Held-out scores of one model by reward name."""
    from actors.pretrained import resolve_model
    from actors.types import PolicyVersion
    from cluster.config import resolve
    from cluster.connection import Cluster
    from cluster.driver import logical_cpus
    from cluster.evaluation import heldout_prompts, heldout_scores, scorer_spec
    from cluster.inputs import load_inputs, load_tokenizer, reward_specs
    from cluster.placement import plan
    from cluster.workers import RolloutPool, ScorerPool

    path = resolve_model(model)
    with Cluster(config.ray.address, logical_cpus(config)) as cluster:
        placement = plan(config, os.cpu_count() or 1, cluster.resources()[1])
        rollout = config.rollout
        engine = resolve.engine_settings(config, str(path))
        pool = RolloutPool(
            placement.role("rollout"), engine, rollout.engine, rollout.stall_timeout_s, rollout.timeout_s
        )
        spec = scorer_spec(config, path, reward_specs(config), Path.cwd())
        scorers = ScorerPool(placement.role("scorer"), spec, rollout.timeout_s)
        inputs = load_inputs(config, load_tokenizer(config, path))
        pool.adopt(PolicyVersion(0, "from disk"), config.ray.start_timeout_s)
        found = heldout_scores(pool, scorers, heldout_prompts(inputs), resolve.evaluation_settings(config), 0)
        return {name: values.tolist() for name, values in found.items()}


def _show(metric: str, scores: dict[str, dict[str, list[float]]]) -> None:
    from rich.console import Console
    from rich.table import Table

    from cluster.run.evaluation import difference_interval, mean_interval

    names: Sequence[str] = list(next(iter(scores.values())))
    table = Table("model", *names, title="held-out mean (95 % interval)")
    for model, found in scores.items():
        cells = [mean_interval(found[name]) for name in names]
        table.add_row(model, *(f"{c.mean:.3f} ({c.low:.3f} to {c.high:.3f})" for c in cells))
    console = Console()
    console.print(table)
    if len(scores) == 2:
        (first, before), (second, after) = scores.items()
        gain = difference_interval(after[metric], before[metric])
        settled = "" if gain.low > 0 or gain.high < 0 else " (not settled: the interval holds zero)"
        console.print(
            f"{metric}: {second} - {first} = {gain.mean:+.3f} ({gain.low:+.3f} to {gain.high:+.3f}), paired{settled}"
        )
