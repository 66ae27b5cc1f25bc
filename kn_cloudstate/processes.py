"""Signals for child processes, and their end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal


def send_signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    """Nothing for one that has ended.

    Not by `process.send_signal`: that may collect the exit code of a process which has just ended, and asyncio then misses it.
    """
    with contextlib.suppress(ProcessLookupError):
        if process.returncode is None:
            os.kill(process.pid, number)


async def end(process: asyncio.subprocess.Process | None, limit: float = 10.0) -> None:
    """SIGTERM, and SIGKILL for what has not ended in time."""
    if process is None:
        return
    send_signal(process, signal.SIGTERM)
    try:
        async with asyncio.timeout(limit):
            await process.wait()
    except TimeoutError:
        send_signal(process, signal.SIGKILL)
        await process.wait()
