"""`raylign plan RUN`: what other numbers of rollout workers, learner ranks and schedules would have done.

In: a finished run, whose times are measured, and what to try. Out: a table of predicted step times and idle shares, the
shortest step marked. The driver's own dispatch and admission run against simulated workers. Left out: memory, which
`raylign check` plans.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from cluster.errors import UserError

SCHEDULES = {"synchronous": (0, False), "one_step_off": (1, True), "asynchronous": (2, False)}
"""(staleness, whether a publish waits for what is under way)."""


def gpu_splits(gpus: int, config: Mapping[str, Any]) -> list[tuple[int, int]]:
    """(workers, ranks) that so many GPUs divide into: a worker takes as many as the run's did, a rank one. UserError
    for none."""
    worker, rank = config["rollout"]["tensor_parallel"], config["learner"]["gpus_per_rank"]
    if 0 < rank < 1:
        raise UserError(
            f"a rank shares its GPU with a worker in this run (learner.gpus_per_rank {rank:g}), so there is nothing to "
            "split; give --workers"
        )
    if gpus <= worker:
        raise UserError(f"a worker takes {worker} and a rank 1 of the GPUs, got {gpus}; give more")
    return [(n, gpus - n * worker) for n in range(1, (gpus - 1) // worker + 1)]


def plan(
    run_dir: Annotated[str, typer.Argument(help="A run of the recipe, some steps long.", metavar="RUN")],
    workers: Annotated[str, typer.Option(help="Rollout workers to try, with commas.")] = "1,2,4,8",
    gpus: Annotated[int | None, typer.Option(help="Split so many between workers and ranks instead.", min=2)] = None,
    nodes: Annotated[int | None, typer.Option(help="Split the GPUs of so many nodes instead.", min=1)] = None,
    gpus_per_node: Annotated[int, typer.Option(help="With --nodes.", min=1)] = 8,
    max_staleness: Annotated[int, typer.Option(help="Of the asynchronous schedule.", min=1)] = 2,
) -> None:
    """Predict step time and idle shares for other sizes and schedules."""
    from rich.console import Console
    from rich.table import Table

    from cluster.run.directory import RunDirectory
    from cluster.run.records.metrics import read_metrics
    from cluster.run.records.samples import read_samples
    from cluster.simulate.fit import groups_of, measure
    from cluster.simulate.run import simulate

    run = RunDirectory.attach(run_dir)
    config = run.read_config()
    kept = [len(record.logprobs) for step in run.sample_steps() for record in read_samples(run.samples_file(step))]
    samples = config["rollout"]["sampling"]["samples_per_prompt"]
    measured = measure(config, read_metrics(run.metrics_file), groups_of(kept, samples))
    try:
        tried = [int(count) for count in workers.split(",")]
    except ValueError as error:
        raise UserError(f"--workers takes numbers with commas, got {workers!r}") from error
    if min(tried) < 1:
        raise UserError(f"--workers takes numbers of at least 1, got {workers}")
    if nodes is not None and gpus is not None:
        raise UserError(f"--nodes and --gpus both say how many GPUs there are, got {nodes} and {gpus}; give one")
    gpus = nodes * gpus_per_node if nodes is not None else gpus
    splits = [(n, measured.ranks) for n in tried] if gpus is None else gpu_splits(gpus, config)
    found = []
    for kind, (staleness, settle) in SCHEDULES.items():
        bound = max_staleness if kind == "asynchronous" else staleness
        for count, ranks in splits:
            forecast = simulate(measured.scenario(workers=count, ranks=ranks, max_staleness=bound, settle=settle))
            step_s = forecast.seconds / len(forecast.step_s)
            idle = max(0.0, 1.0 - forecast.decoding / (count * forecast.seconds))
            found.append((kind, count, ranks, step_s, forecast.learner_idle, idle))
    best = min(found, key=lambda row: row[3])
    table = Table("schedule", "workers", "ranks", "s a step", "learner idle", "workers idle", title=f"from {run}")
    for kind, count, ranks, step_s, learner_idle, idle in found:
        mark = " <" if (kind, count, ranks) == best[:3] else ""
        table.add_row(kind, str(count), str(ranks), f"{step_s:.2f}{mark}", f"{learner_idle:.0%}", f"{idle:.0%}")
    console = Console()
    console.print(table)
    if config["ray"]["address"] == "local":
        console.print(
            "The run's roles took turns on one machine. What overlaps there divides its processors: the steps of "
            "one_step_off and asynchronous are those of roles with processors of their own."
        )
