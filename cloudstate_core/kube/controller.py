"""A control loop: keys come from caches, a `reconcile` brings each to its wanted state, failures are tried again."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from cloudstate_core.kube.api import Conflict, KubeError
from cloudstate_core.kube.queue import WorkQueue

log = logging.getLogger(__name__)

Reconcile = Callable[[str], Awaitable[float | None]]
"""Brings one key to its wanted state; seconds after which to look again, or None."""


class Controller:
    """Runs `reconcile` for keys, several at once, never one key twice at the same time."""

    def __init__(
        self, name: str, reconcile: Reconcile, workers: int = 4, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.queue = WorkQueue(clock)
        self._name, self._reconcile, self._workers = name, reconcile, workers
        self.done_total = self.failed_total = 0

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._workers):
                group.create_task(self._work())

    async def _work(self) -> None:
        while True:
            key = await self.queue.take()
            failed, wait = True, 0.0
            try:
                again = await self._reconcile(key)
                failed = False
                self.done_total += 1
                if again is not None:
                    self.queue.add_after(key, again)
            except Conflict as error:
                log.info("%s: %s: %s", self._name, key, error)
            except KubeError as error:
                wait = error.retry_after
                log.warning("%s: %s: %s", self._name, key, error)
            except Exception:
                log.exception("%s: %s failed", self._name, key)
            finally:
                self.failed_total += failed
                self.queue.done(key, failed, wait)
