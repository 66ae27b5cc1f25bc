"""Asks new pods whether they serve, more often than the kubelet does: most of a cold start's avoidable wait is its one-second period.

queue-proxy answers a probe well once the user container passes its own readiness check, so that a pod which passed takes calls safely.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import aiohttp

INTERVAL = 0.05
LIMIT = 0.3
"""Seconds an answer may take."""
ANSWER_LIMIT = 64
"""Bytes of an answer that are looked at."""
HEADERS = {"K-Network-Probe": "queue", "User-Agent": "Knative-Activator-Probe"}


class Prober:
    """Probes pods by name until they pass or are forgotten; `on_pass(name)` is called once for each."""

    def __init__(self, on_pass: Callable[[str], None]) -> None:
        self._on_pass = on_pass
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._session: aiohttp.ClientSession | None = None
        self._closed = False

    def follow(self, name: str, address: str) -> None:
        """Begin to probe a pod at host:port; a no-op when that has begun."""
        if name not in self._tasks and not self._closed:
            self._tasks[name] = asyncio.get_running_loop().create_task(self._probe(name, address))

    def forget(self, name: str) -> None:
        """The pod is ready, or gone."""
        if (task := self._tasks.pop(name, None)) is not None:
            task.cancel()

    async def close(self) -> None:
        """Stop every probe; no other one begins."""
        self._closed = True
        for name in list(self._tasks):
            self.forget(name)
        if self._session is not None:
            await self._session.close()

    async def _probe(self, name: str, address: str) -> None:
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=LIMIT))
        while not await self._passes(self._session, f"http://{address}/"):
            await asyncio.sleep(INTERVAL)
        self._on_pass(name)

    @staticmethod
    async def _passes(session: aiohttp.ClientSession, url: str) -> bool:
        try:
            async with session.get(url, headers=HEADERS) as response:
                return response.status == 200 and await response.content.read(ANSWER_LIMIT) == b"queue"
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False
