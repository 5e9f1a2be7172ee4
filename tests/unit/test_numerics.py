"""Elementary functions are exact from a process's first call on, also when several threads make it."""

import subprocess
import sys

import pytest

FIRST_CALL = """
import torch
from actors.numerics import settle_kernels
torch.set_num_threads(4)
settle_kernels()
angles = torch.outer(torch.arange(4096.0), 10000 ** -(torch.arange(0, 64, 2) / 64))
for name in ("sin", "cos", "exp", "log1p"):
    x = angles if name != "exp" else -angles
    first = getattr(torch, name)(x)
    exact = getattr(torch, name)(x.double())
    print(name, float((first - exact).abs().max()))
"""


@pytest.mark.parametrize("start", range(3))
def test_the_first_call_is_right_to_float32(start):
    out = subprocess.run([sys.executable, "-c", FIRST_CALL], capture_output=True, text=True, check=True).stdout
    errors = {name: float(error) for name, error in map(str.split, out.splitlines())}
    assert set(errors) == {"sin", "cos", "exp", "log1p"}
    assert max(errors.values()) < 1e-6, errors
