"""Elementary functions are settled on one element, in both precisions, by whoever loads a model.

The race itself (pytorch issue 188792) shows in too few starts for a test; that its cause is taken away does not.
"""

import pytest
import torch

from actors.models import numerics
from learners.engines import models
from learners.engines.settings import ModelSettings
from tests.fixtures.tiny_model import make_tiny_model


def test_each_function_is_called_first_on_one_element_in_both_precisions(monkeypatch):
    seen = set()
    for name in ("sin", "cos", "exp", "log", "sqrt", "tanh", "erf"):
        real = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda x, n=name, f=real: seen.add((n, x.dtype, x.numel())) or f(x))
    numerics.settle_kernels()
    names = ("sin", "cos", "exp", "log", "sqrt", "tanh", "erf")
    assert seen == {(name, dtype, 1) for name in names for dtype in (torch.float32, torch.float64)}


@pytest.mark.parametrize("load", [models.load_policy, models.load_critic])
def test_a_learners_model_is_not_handed_out_before_that(load, monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(models, "settle_kernels", lambda: calls.append(1))
    load(ModelSettings(str(make_tiny_model(tmp_path / "tiny")), dtype="float32"))
    assert calls == [1]
