"""`raylign ledger RUN`: what became of every prompt.

In: a run directory, also of a run that goes on. Out: admitted = trained + dropped + in flight, why prompts were
dropped, and the last versions of the policy. Left out: writing any of it (cluster/run/ledger.py).
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cluster.commands.output import Json, print_json


def ledger(
    run_dir: Annotated[str, typer.Argument(metavar="RUN", help="A run directory.")], as_json: Json = False
) -> None:
    """Show what became of every prompt of a run.

    With --json an object: run_dir, admitted, trained, dropped, in_flight, balanced (whether the first is the sum of the
    others), reasons (of drops, with their counts), last_trained_step and policy_version (null before the first).
    """
    if as_json:
        print_json(lambda: ledger_facts(run_dir))
    else:
        typer.echo("\n".join(ledger_lines(run_dir)))


def ledger_lines(run_dir: str) -> list[str]:
    """The balance, the reasons of drops, the last version. UserError where no run stands."""
    found = ledger_facts(run_dir)
    sign = "=" if found["balanced"] else "IS NOT"
    lines = [
        found["run_dir"],
        f"  {found['admitted']} admitted {sign} {found['trained']} trained + {found['dropped']} dropped + "
        f"{found['in_flight']} in flight",
        *(f"  {count} dropped: {reason}" for reason, count in found["reasons"].items()),
    ]
    if found["last_trained_step"] is not None:
        lines.append(f"  last trained in step {found['last_trained_step']}")
    if found["policy_version"] is not None:
        lines.append(f"  policy version {found['policy_version']}")
    return lines


def ledger_facts(run_dir: str) -> dict[str, Any]:
    """What --json prints. UserError where no run stands."""
    from cluster.errors import UserError
    from cluster.run.directory import RunDirectory
    from cluster.run.ledger import Ledger

    run = RunDirectory.attach(run_dir)
    if not run.ledger_file.is_file():
        raise UserError(f"{run} has no ledger yet; its driver has not begun")
    with Ledger.reading(run.ledger_file) as book:
        counts, reasons = book.counts(), book.reasons()
        version, step = book.last_version(), book.last_trained()
    return {
        "run_dir": str(run),
        "admitted": counts.admitted,
        "trained": counts.trained,
        "dropped": counts.dropped,
        "in_flight": counts.in_flight,
        "balanced": counts.balanced(),
        "reasons": dict(sorted(reasons.items())),
        "last_trained_step": step,
        "policy_version": version or None,
    }
