"""What runs inside the rank processes of test_other_ranks: engines that leave their state, and engines that take it.

In: rank, world size, {"folder", "leave": [[kind, dtype]], "take": [[kind, dtype, place]]}. Out: nothing but files: for
every engine the folders PLACE (its state, and its whole parameters in `parameters.safetensors`) and PLACE-after (its
state one step later). Left out: comparing them.
"""

from __future__ import annotations

import gc
from pathlib import Path

import torch
from safetensors.torch import save_file

from learners.engines.interface import TrainEngine
from tests.contracts.learners.train_engine_cases import LENGTH, SMOOTH, VOCABULARY, Critic, llama, make

ROWS = 6
"""Each by itself in a forward, so that it gives the same gradient on whatever rank: among 1, 2 or 3."""


def steps(engine: TrainEngine, count: int) -> None:
    ids = torch.randint(0, VOCABULARY, (ROWS, 1, LENGTH), generator=torch.Generator().manual_seed(1))
    mine = list(ids[engine.rank :: engine.world_size])
    for _ in range(count):
        for i, row in enumerate(mine):
            engine.backward(engine.module(row).square().mean() / ROWS, last=i == len(mine) - 1)
        engine.step()


def show(engine: TrainEngine, place: Path) -> None:
    """Leave the state and the parameters, take a step, leave the state."""
    after = place.with_name(f"{place.name}-after")
    for folder in (place, after):
        folder.mkdir(parents=True, exist_ok=True)
    engine.save(place)
    parameters = {n: t.clone() for bucket in engine.full_parameters(1 << 16) for n, t in bucket}
    if engine.rank == 0:
        save_file(parameters, place / "parameters.safetensors")
    steps(engine, 1)
    engine.save(after)
    engine.close()


def run(rank: int, world: int, payload: dict) -> None:
    torch.set_num_threads(1)
    gc.freeze()  # see train_engine_cases.run
    folder = Path(payload["folder"])
    for kind, dtype in payload["leave"]:
        engine = make(kind, Critic(llama(layers=1)), SMOOTH, dtype)
        steps(engine, 2)
        show(engine, folder / left(kind, dtype, world))
    for kind, dtype, place in payload["take"]:
        engine = make(kind, Critic(llama(seed=5, layers=1)), SMOOTH, dtype)
        engine.load(folder / place)
        show(engine, folder / taken(kind, world, place))


def left(kind: str, dtype: str, world: int) -> str:
    return f"{kind}-{dtype}-{world}"


def taken(kind: str, world: int, place: str) -> str:
    return f"{place}-to-{kind}-{world}"
