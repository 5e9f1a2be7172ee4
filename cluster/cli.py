"""The command line: finds its verbs by the entry-point group `raylign.commands`, so that `cluster` never imports
`serve`, and loads only the verb that was asked for. `--install-completion` completes verbs and options in a shell.

Exit codes: 0 done, 1 the run failed, 2 the input is wrong. A UserError (or ConfigError) prints its sentence alone.
"""

from __future__ import annotations

import difflib
import sys
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import typer
from typer.core import TyperGroup

from cluster.errors import RunFailed, StepLost, UserError
from cluster.life.supervisor import AGAIN

GROUP = "raylign.commands"


def _verbs() -> dict[str, EntryPoint]:
    return {point.name: point for point in sorted(entry_points(group=GROUP), key=lambda point: point.name)}


class Verbs(TyperGroup):
    """A verb is loaded when it is asked for: to run, to complete its options, or to tell what it does."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(_verbs())

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.commands and (point := _verbs().get(cmd_name)) is not None:
            app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
            app.command(cmd_name)(point.load())
            self.commands[cmd_name] = typer.main.get_command(app)
        return self.commands.get(cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] not in (known := _verbs()) and not args[0].startswith("-") and not ctx.resilient_parsing:
            near = difflib.get_close_matches(args[0], known, n=1)
            ctx.fail(f"No such command '{args[0]}'." + (f" Did you mean '{near[0]}'?" if near else ""))
        return super().resolve_command(ctx, args)


def _app() -> typer.Typer:
    app = typer.Typer(
        name="raylign",
        cls=Verbs,
        help="Reinforcement learning and preference tuning of language models on Ray.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
    )
    app.callback()(lambda: None)  # a single verb must still be named
    return app


def main() -> None:
    try:
        _app()()
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
