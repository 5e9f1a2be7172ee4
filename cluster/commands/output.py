"""What `--json` prints: one JSON text on stdout, and nothing else there.

In: a function that makes plain data (mappings, lists, text, numbers). Out: its JSON; whatever is printed meanwhile, by
a library or a child process too, goes to stderr. A number that is not finite is null: JSON has none. Left out: the
keys, which each verb's own help names.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout and nothing else there.")]


def print_json(make: Callable[[], Any]) -> None:
    """Print what `make` makes. Its errors go their way, and then nothing is printed."""
    with only_to_stderr():
        made = make()
    typer.echo(json.dumps(_plain(made), indent=2, allow_nan=False))


@contextmanager
def only_to_stderr() -> Iterator[None]:
    """Until it ends, stdout is stderr: for this interpreter's prints and for what writes to the descriptor."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
