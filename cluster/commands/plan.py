"""`raylign plan RUN`: what other numbers of rollout workers, learner ranks and schedules would have done.

In: a finished run, whose times are measured, and what to try. Out: a table of predicted step times and idle shares, the
shortest step marked. The driver's own dispatch and admission run against simulated workers. Left out: memory, which
`raylign check` plans.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from cluster.commands.output import Json, print_json
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
    as_json: Json = False,
) -> None:
    """Predict step time and idle shares for other sizes and schedules.

    With --json an object: run_dir, one_machine (whether the run's roles took turns on one machine: what overlaps there
    divides its processors) and forecasts, each with schedule, workers, ranks, step_s, learner_idle, workers_idle
    (shares) and best (of the shortest step).
    """

    def forecast() -> dict[str, Any]:
        if nodes is not None and gpus is not None:
            raise UserError(f"--nodes and --gpus both say how many GPUs there are, got {nodes} and {gpus}; give one")
        total = nodes * gpus_per_node if nodes is not None else gpus
        return forecasts(run_dir, _counts(workers), total, max_staleness)

    if as_json:
        print_json(forecast)
    else:
        _show(forecast())


def _counts(workers: str) -> list[int]:
    try:
        tried = [int(count) for count in workers.split(",")]
    except ValueError as error:
        raise UserError(f"--workers takes numbers with commas, got {workers!r}") from error
    if min(tried) < 1:
        raise UserError(f"--workers takes numbers of at least 1, got {workers}")
    return tried


def forecasts(run_dir: str, tried: Sequence[int], gpus: int | None, max_staleness: int) -> dict[str, Any]:
    """What --json prints. tried: numbers of workers, beside the run's ranks; gpus: split so many between both
    instead."""
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
    splits = [(n, measured.ranks) for n in tried] if gpus is None else gpu_splits(gpus, config)
    found: list[dict[str, Any]] = []
    for kind, (staleness, settle) in SCHEDULES.items():
        bound = max_staleness if kind == "asynchronous" else staleness
        for count, ranks in splits:
            forecast = simulate(measured.scenario(workers=count, ranks=ranks, max_staleness=bound, settle=settle))
            found.append(
                {
                    "schedule": kind,
                    "workers": count,
                    "ranks": ranks,
                    "step_s": forecast.seconds / len(forecast.step_s),
                    "learner_idle": forecast.learner_idle,
                    "workers_idle": max(0.0, 1.0 - forecast.decoding / (count * forecast.seconds)),
                }
            )
    best = min(found, key=lambda each: each["step_s"])
    return {
        "run_dir": str(run),
        "one_machine": config["ray"]["address"] == "local",
        "forecasts": [{**each, "best": each is best} for each in found],
    }


def _show(found: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    headings = ("schedule", "workers", "ranks", "s a step", "learner idle", "workers idle")
    table = Table(*headings, title=f"from {found['run_dir']}")
    for each in found["forecasts"]:
        step = f"{each['step_s']:.2f}{' <' if each['best'] else ''}"
        idle = (f"{each['learner_idle']:.0%}", f"{each['workers_idle']:.0%}")
        table.add_row(each["schedule"], str(each["workers"]), str(each["ranks"]), step, *idle)
    console = Console()
    console.print(table)
    if found["one_machine"]:
        console.print(
            "The run's roles took turns on one machine. What overlaps there divides its processors: the steps of "
            "one_step_off and asynchronous are those of roles with processors of their own."
        )
