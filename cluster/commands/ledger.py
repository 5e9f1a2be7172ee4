"""`raylign ledger RUN`: what became of every prompt.

In: a run directory, also of a run that goes on. Out: admitted = trained + dropped + in flight, why prompts were
dropped, and the last versions of the policy. Left out: writing any of it (cluster/run/ledger.py).
"""

from __future__ import annotations

from typing import Annotated

import typer


def ledger(run_dir: Annotated[str, typer.Argument(metavar="RUN", help="A run directory.")]) -> None:
    """Show what became of every prompt of a run."""
    typer.echo("\n".join(ledger_lines(run_dir)))


def ledger_lines(run_dir: str) -> list[str]:
    """The balance, the reasons of drops, the last version. UserError where no run stands."""
    from cluster.errors import UserError
    from cluster.run.directory import RunDirectory
    from cluster.run.ledger import Ledger

    run = RunDirectory.attach(run_dir)
    if not run.ledger_file.is_file():
        raise UserError(f"{run} has no ledger yet; its driver has not begun")
    with Ledger.reading(run.ledger_file) as book:
        counts, reasons = book.counts(), book.reasons()
        version, step = book.last_version(), book.last_trained()
    sign = "=" if counts.balanced() else "IS NOT"
    lines = [
        f"{run}",
        f"  {counts.admitted} admitted {sign} {counts.trained} trained + {counts.dropped} dropped + "
        f"{counts.in_flight} in flight",
        *(f"  {count} dropped: {reason}" for reason, count in sorted(reasons.items())),
    ]
    if step is not None:
        lines.append(f"  last trained in step {step}")
    if version:
        lines.append(f"  policy version {version}")
    return lines
