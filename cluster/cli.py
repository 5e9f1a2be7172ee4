"""The command line: finds its verbs by the entry-point group `raylign.commands`, so that `cluster` never imports
`serve`, and loads only the verb that was asked for.

Exit codes: 0 done, 1 the run failed, 2 the input is wrong. A UserError (or ConfigError) prints its sentence alone.
"""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint, entry_points

import typer

from cluster.errors import RunFailed, StepLost, UserError
from cluster.life.supervisor import AGAIN

GROUP = "raylign.commands"


def _verbs() -> dict[str, EntryPoint]:
    return {point.name: point for point in sorted(entry_points(group=GROUP), key=lambda point: point.name)}


def _app(asked: str | None) -> typer.Typer:
    app = typer.Typer(
        name="raylign",
        help="Reinforcement learning and preference tuning of language models on Ray.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.callback()(lambda: None)  # a single verb must still be named
    for name, point in _verbs().items():
        if asked in (None, name):
            app.command(name)(point.load())
    return app


def main() -> None:
    asked = sys.argv[1] if len(sys.argv) > 1 and sys.argv[1] in _verbs() else None
    try:
        _app(asked)()
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except StepLost as error:
        print(error, file=sys.stderr)
        sys.exit(AGAIN)
    except RunFailed as error:
        print(error, file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
