"""A rollout worker's process and its owners: it works for the last one alone."""

from __future__ import annotations

import asyncio

import pytest

from actors.engines.interface import EngineSettings
from actors.types import PolicyVersion, Prompt, SamplingSettings
from cluster.roles import rollout
from tests.fixtures.scripted_engine import ScriptedEngine
from tests.unit.actors.rollouts.test_server import Gate

SAMPLING = SamplingSettings(max_tokens=4, samples_per_prompt=1)
PROMPTS = [Prompt(id=1, token_ids=(1, 2), group=1)]


@pytest.fixture
def gate(monkeypatch, tmp_path):
    found = Gate()
    engine = ScriptedEngine({"1/0": [7, 8, 9]}, on_step=found)
    monkeypatch.setattr(rollout, "_rollout_engine", lambda settings, kind: engine)
    return found


def role_of(tmp_path) -> rollout.RolloutRole:
    spec = rollout.RolloutSpec(EngineSettings(str(tmp_path)), "torch", "cpu", "object_store", 60.0, 60.0)
    return rollout.RolloutRole(spec)


def test_another_owner_drops_what_was_under_way_and_refuses_what_comes_late(gate, tmp_path):
    async def both() -> None:
        role = role_of(tmp_path)
        await role.own("first")
        await role.in_turn("first", 0, "adopt", PolicyVersion(1, "disk"))
        early = asyncio.ensure_future(role.in_turn("first", 2, "begin_publish", 2))  # turn 1 never came
        making = asyncio.ensure_future(role.generate("first", PROMPTS, None, SAMPLING, 1, 0))
        assert await asyncio.to_thread(gate.reached.acquire, timeout=10), "the engine is in its first of three steps"
        owned = asyncio.ensure_future(role.own("second"))
        await asyncio.sleep(0)  # it has asked
        gate.open(100)
        await owned
        assert (await making)[2].unfinished == 1 and not early.done()
        with pytest.raises(RuntimeError, match="of a driver that was replaced"):
            await role.in_turn("first", 1, "adopt", PolicyVersion(2, "disk"))
        with pytest.raises(RuntimeError, match="of a driver that was replaced"):
            await role.generate("first", PROMPTS, None, SAMPLING, 1, 0)
        batch, _, _ = await role.generate("second", PROMPTS, None, SAMPLING, 1, 0)
        assert batch.token_ids.tolist()[-3:] == [7, 8, 9]
        await role.in_turn("second", 0, "begin_publish", 3)
        assert (await role.pulse()).open == 0
        early.cancel()
        role.close()

    asyncio.run(both())
