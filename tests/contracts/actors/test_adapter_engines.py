"""A policy with an adapter on every train engine: the torch twin's adapter, the base as the reference, an exact resume.

One job of two ranks runs all ZeRO stages; what they do is in adapter_engine_cases.py.
"""

from __future__ import annotations

import pytest

from tests.fixtures.ranks import run_ranks
from tests.fixtures.tiny_model import make_tiny_model

STAGES = ("zero-0", "zero-1", "zero-2", "zero-3", "zero-3-offload")
ADAPTER_ELEMENTS = 2 * 4 * (256 + 192 * 2 + 256 + 384 * 3)
"""Two layers, rank 4 times in + out of q, k and v, o, and the three of the feed-forward."""

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    payload = {"folder": str(folder / "cases"), "model": str(make_tiny_model(folder / "tiny")), "kinds": list(STAGES)}
    return run_ranks("tests.contracts.actors.adapter_engine_cases:run", 2, payload, folder=folder, timeout_s=400)


@pytest.fixture(params=STAGES)
def ranks(request, results):
    return [mine[request.param] for mine in results]


def test_the_adapter_starts_and_learns_as_on_the_twin(ranks):
    for mine in ranks:
        assert mine["starts_as_the_twin"] and mine["moved"]
        assert mine["published"] == ["A.weight", "B.weight"]
        assert mine["difference"] < 1e-5
        assert mine["merged_difference"] < 1e-5


def test_the_reference_stays_while_the_policy_leaves_it(ranks):
    for mine in ranks:
        assert mine["reference_stayed"]
        assert mine["policy_left"] > 0.01


def test_a_loaded_engine_goes_on_bit_for_bit_from_a_checkpoint_of_the_adapter_alone(ranks):
    for mine in ranks:
        assert mine["resumed_float32"] and mine["resumed_bfloat16"]
        # master and two moments; below twice as much where every rank holds all
        assert mine["bytes_float32"] < 2 * 12 * ADAPTER_ELEMENTS + 50_000
