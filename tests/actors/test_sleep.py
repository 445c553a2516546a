"""Engines that take turns with a learner: what happens to their memory, in which order.

The actor is real; the engine inside only writes down what it is told.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from actors.engine import EngineOptions
from actors.pool import EnginePool
from stepwiser.errors import UserError
from tests.actors.scripted import SleepyEngine

WEIGHTS, CACHE = "wake ('weights',)", "wake ('kv_cache',)"


def test_memory_comes_back_for_weights_then_weights_then_for_the_cache(
    ray_local: None, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    log.touch()
    options = EngineOptions(model=str(log), max_num_seqs=4)
    pool = EnginePool(options, count=1, build=SleepyEngine, start_timeout_s=300.0)

    async def scenario() -> None:
        await pool.sleep()
        await pool.sleep()  # of a learner that starts again
        await pool.update_weights(str(tmp_path / "first"), 1, 60.0)
        await pool.update_weights(str(tmp_path / "second"), 2, 60.0)  # awake: nothing to wake
        await pool.sleep()
        with pytest.raises(UserError, match="refused"):
            await pool.update_weights(str(tmp_path / "refused"), 3, 60.0)
        # It has its weights back but no cache; what sleeps half is woken before it sleeps again.
        await pool.sleep()
        await pool.update_weights(str(tmp_path / "fourth"), 4, 60.0)

    try:
        asyncio.run(scenario())
    finally:
        pool.shutdown()
    assert log.read_text().splitlines() == [
        *("sleep 1", WEIGHTS, "load 1", CACHE),
        "load 2",
        *("sleep 1", WEIGHTS, "refuse", CACHE),
        *("sleep 1", WEIGHTS, "load 4", CACHE),
    ]
