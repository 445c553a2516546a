"""What a client is told of the others, without Ray."""

from __future__ import annotations

from typing import Any

from actors.engine.engine import EngineStats
from actors.pool.registry import EngineRegistry
from actors.pool.routing import Load


async def test_a_client_is_told_what_the_others_have() -> None:
    registry: Any = EngineRegistry.__ray_metadata__.modified_class()
    await registry.register(1, {0: "first", 1: "second"}, {})
    await registry.report(
        0, 0, EngineStats(), {"a": Load(100, 1), "b": Load(30, 2), "c": Load(7, 4)}
    )
    told = await registry.watch(0, "a", 0)
    assert told.engines == {0: "first", 1: "second"}
    assert told.elsewhere == {0: Load(37, 6), 1: Load()}
    assert (await registry.watch(0, "stranger", 0)).elsewhere[0] == Load(137, 7)
    await registry.report(0, 0, EngineStats(), {"a": Load(50, 5)})
    assert (await registry.watch(0, "a", 0)).elsewhere == {0: Load(), 1: Load()}
