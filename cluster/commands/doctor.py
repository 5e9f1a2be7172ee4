"""`raylign doctor`: is this machine, or every node of a cluster, fit to run? One line a finding; exit 1 if any fails.

In: nothing, or a Ray address with the run directory and model that all nodes must see. Out: lines ok, warn or fail,
with the fix. Left out: a particular config (`raylign check`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cluster.inspect.health import Finding

NODE_TIMEOUT_S = 120.0


def doctor(
    address: Annotated[str | None, typer.Option(help="Check the nodes of this Ray cluster too.")] = None,
    run_dir: Annotated[str, typer.Option(help="Where runs go; with --address every node must reach it.")] = "runs",
    model: Annotated[str | None, typer.Option(help="A model directory that every node must see.")] = None,
) -> None:
    """Say what is wrong with this machine or cluster, and how to mend it."""
    from cluster.inspect.health import FAIL, IMPORTED, import_findings, machine_findings
    from cluster.inspect.machine import existing_parent, this_machine

    failed = False
    machine = this_machine()
    for findings in (machine_findings(machine, existing_parent(Path(run_dir))), import_findings(IMPORTED)):
        for finding in findings:
            typer.echo(finding)
            failed |= finding.level == FAIL
    if address is not None:
        for finding in _cluster_findings(address, Path(run_dir).absolute(), model):
            typer.echo(finding)
            failed |= finding.level == FAIL
    if failed:
        raise typer.Exit(1)


def _cluster_findings(address: str, run_dir: Path, model: str | None) -> Iterator[Finding]:
    import os

    from cluster.inspect.health import FAIL, Finding
    from cluster.inspect.machine import unreachable_reason
    from cluster.inspect.nodes import node_findings, place_mark, visit

    reason = unreachable_reason(address, os.environ)
    if reason is not None:
        yield Finding(FAIL, "cluster", reason)
        return
    from cluster.life.connection import Cluster
    from cluster.workers import on_every_node

    mark = place_mark(run_dir)
    with Cluster(address, 0):
        answers = on_every_node(visit, str(mark), model, timeout_s=NODE_TIMEOUT_S)
    yield from node_findings(mark, model, answers)
