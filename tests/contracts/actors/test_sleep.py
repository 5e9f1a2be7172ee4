"""An engine that gave up its memory: it does nothing until an update, and is then the engine it was or is to be.

vLLM frees the memory of GPUs only, so its cases are marked; the twin drops what vLLM would and no more.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from actors.engines.interface import EngineBetweenVersions, EngineSettings, Request, RolloutEngine
from actors.transports.buckets import make_buckets
from tests.fixtures.engines import BUCKET_BYTES, start_engine, update
from tests.fixtures.tiny_model import make_tiny_model

PROMPT, RESPONSE = list(range(10, 20)), [5, 6, 7]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("sleep")
    return make_tiny_model(root / "a", seed=0), make_tiny_model(root / "b", seed=1)


def settings(path: Path, level: int) -> EngineSettings:
    return EngineSettings(
        str(path),
        dtype="float32",
        max_model_len=96,
        max_num_seqs=4,
        kv_cache_bytes=1 << 26,
        gpu_memory_utilization=0.2,
        sleep_level=level,
    )


@pytest.fixture(
    scope="module",
    params=[
        ("torch", 1),
        ("torch", 2),
        pytest.param(("vllm", 1), marks=pytest.mark.gpu),
        pytest.param(("vllm", 2), marks=pytest.mark.gpu),
    ],
    ids=lambda given: f"{given[0]}-{given[1]}",
)
def engine(request: pytest.FixtureRequest, models: tuple[Path, Path]) -> Iterator[RolloutEngine]:
    kind, level = request.param
    made = start_engine(kind, settings(models[0], level))
    yield made
    made.close()


def request_of(name: str) -> Request:
    return Request(name, tuple(PROMPT), temperature=0.0, max_tokens=3, seed=0)


def test_asleep_it_neither_decodes_nor_scores_and_an_update_wakes_it(
    engine: RolloutEngine, models: tuple[Path, Path]
) -> None:
    first = engine.logprobs([PROMPT], [RESPONSE])[0]
    for path in (models[1], models[0]):
        engine.sleep()
        with pytest.raises(EngineBetweenVersions):
            engine.step()
        with pytest.raises(EngineBetweenVersions):
            engine.logprobs([PROMPT], [RESPONSE])
        update(engine, list(make_buckets(load_file(path / "model.safetensors").items(), BUCKET_BYTES)))
        found = engine.logprobs([PROMPT], [RESPONSE])[0]
        assert np.array_equal(found, first) == (path == models[0])


def test_what_is_under_way_keeps_it_awake(engine: RolloutEngine) -> None:
    engine.add_request(request_of("under way"))
    engine.step()
    with pytest.raises(RuntimeError, match="sleep with 1 requests under way"):
        engine.sleep()
    while engine.step():
        pass


def test_an_engine_that_may_not_sleep_says_so(models: tuple[Path, Path]) -> None:
    awake = start_engine("torch", settings(models[0], 0))
    with pytest.raises(RuntimeError, match="sleep_level is 0"):
        awake.sleep()
    awake.close()


def test_what_a_second_level_sleeper_forgot_is_missed_if_the_update_lacks_it(models: tuple[Path, Path]) -> None:
    asleep = start_engine("torch", settings(models[0], 2))
    asleep.sleep()
    asleep.start_update()
    with pytest.raises(ValueError, match="the update lacks"):
        asleep.finish_update()
    asleep.close()
