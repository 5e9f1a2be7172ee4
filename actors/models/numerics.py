"""Before a model computes: this process's elementary functions made exact, and the model where it is to run.

In: a model, where it goes. Out: the model there; torch computes sin, cos, exp and their kin with full precision from
the first call on. Left out: kernels of devices other than the CPU.
"""

from __future__ import annotations

from typing import TypeVar

import torch

Model = TypeVar("Model", bound=torch.nn.Module)

_FUNCTIONS = (
    *("acos", "asin", "atan", "ceil", "cos", "erf", "erfc", "erfinv", "exp", "expm1", "floor", "lgamma"),
    *("log", "log10", "log1p", "log2", "round", "sin", "sqrt", "tan", "tanh", "trunc"),
)


def settle_kernels() -> None:
    """Call each function that torch gives to MKL's vector library once, on one element and so on one thread.

    oneMKL 2024.2 (in torch's CPU builds) picks a function's kernel at its first call; when several threads make that
    call at once, one may run a kernel that is right to about 1e-4 only (pytorch/pytorch issue 188792). Such a call
    that fills the cosines of the rotary embedding leaves an engine 1e-4 nats off for as long as it lives.
    """
    for dtype in (torch.float32, torch.float64):
        one = torch.full((1,), 0.5, dtype=dtype)
        for name in _FUNCTIONS:
            getattr(torch, name)(one)


def placed(model: Model, where: torch.device | torch.dtype | str) -> Model:
    """The model itself, moved to a device or cast to a dtype. transformers wraps its models' `to` such that a type
    checker takes it for no method; by torch's own declaration it is one."""
    return model.to(where)
