"""A reward function by name: where it stands, its weight, its time limit.

In: what the config says. Out: `RewardSpec`, and `resolve_function`, which turns a reference into `module:function` or
`/absolute/file.py:function` without importing it. Standard library only. Left out: loading and calling (child.py).
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

BATCHED_MARK = "raylign_batched"
BUILT_IN_MODULE = "actors.rewards.builtin"
BUILT_IN = (
    "exact_match",
    "last_number",
    "length_penalty",
    "math_verify",
    "reasoning_gym",
    "regex",
    "repetition_penalty",
    "sentiment",
)

Function = TypeVar("Function", bound=Callable)


def batched(function: Function) -> Function:
    """Marks a reward function that takes lists and returns a list of the same length."""
    setattr(function, BATCHED_MARK, True)
    return function


@dataclass(frozen=True, slots=True)
class RewardSpec:
    """name: of this part in metrics. function: a built-in's short name, `module:function` or `path/file.py:function`.

    weight: in the sum; a part of weight 0 is only logged, and its failure costs no score. timeout_s: of one call: one
    sample, or the whole batch of a batched function. batched: None asks the function's `@batched` mark.
    args: keyword arguments of every call.
    """

    name: str
    function: str
    weight: float = 1.0
    timeout_s: float = 10.0
    batched: bool | None = None
    args: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError(f"reward {self.function!r} needs a name")
        if not self.timeout_s > 0:
            raise ValueError(f"reward {self.name!r}: timeout_s must be above 0, got {self.timeout_s}")
        if not math.isfinite(self.weight):
            raise ValueError(f"reward {self.name!r}: weight must be a finite number, got {self.weight}")


def resolve_function(reference: str, base: Path | None = None) -> str:
    """`module:function` or `/absolute/file.py:function`; files are looked up from `base` (default: here).

    ValueError when the reference has another form, names no built-in, or its file is missing.
    """
    if ":" not in reference:
        if reference in BUILT_IN:
            return f"{BUILT_IN_MODULE}:{reference}"
        near = difflib.get_close_matches(reference, BUILT_IN, n=1)
        hint = f"did you mean {near[0]}?" if near else f"built in are {', '.join(BUILT_IN)}"
        forms = "no built-in reward, and not module:function or path/file.py:function"
        raise ValueError(f"{reference!r} is {forms}; {hint}")
    where, _, function = reference.rpartition(":")
    if not function.isidentifier():
        raise ValueError(f"{reference!r} must end with the name of a function after the colon")
    if not where.endswith(".py"):
        if not all(part.isidentifier() for part in where.split(".")):
            raise ValueError(f"{reference!r}: {where!r} is neither a module nor a file that ends with .py")
        return reference
    path = ((base or Path.cwd()) / Path(where).expanduser()).resolve()
    if not path.is_file():
        raise ValueError(f"{reference!r}: there is no file {path}")
    return f"{path}:{function}"
