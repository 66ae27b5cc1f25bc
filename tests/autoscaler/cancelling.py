"""Tasks that are told to end in the very moment in which something happens that they wait for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

TURNS = 100
"""Turns of the loop in which everything that can happen without the test has happened."""


async def ends_all_the_same(running: asyncio.Task[None], happens: Callable[[], object], turns: int) -> bool:
    """Cancel a task that waits, `turns` turns of the loop after what it waits for; True when it has ended by that."""
    await _pass(TURNS)
    happens()
    await _pass(turns)
    running.cancel()
    await _pass(TURNS)
    return running.cancelled()


async def _pass(turns: int) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)
