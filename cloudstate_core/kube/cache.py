"""A local copy of some objects that follows the API server: list, then watch from there; told changes go to listeners.

Guarantees: after `synced` the copy holds every object of the selection; each change is told once, in order, with the object as it was; a
relist (after 410, or a lost watch that cannot go on) is told as the difference to what was known, deletions included. Trouble is logged
once per outage and never ends the cache; it waits as the server asks (429) or with a growing delay.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable, Mapping
from typing import Generic, TypeVar

from cloudstate_core.kube.api import Gone, Kind, KubeError
from cloudstate_core.kube.client import KubeClient
from cloudstate_core.kube.objects import Object

log = logging.getLogger(__name__)

T = TypeVar("T", bound=Object)
RETRY_FIRST, RETRY_LAST = 0.1, 10.0
RELIST_AFTER = 3
"""Watches in a row that break without news before the cache lists again, in case its version is the trouble."""


def difference(known: Mapping[str, T], listed: Iterable[T]) -> list[tuple[T | None, T | None]]:
    """(before, after) for each object that a list shows as new, changed (another resource version) or gone."""
    changes: list[tuple[T | None, T | None]] = []
    seen = set()
    for new in listed:
        key = new.metadata.key
        seen.add(key)
        old = known.get(key)
        if old is None or old.metadata.resource_version != new.metadata.resource_version:
            changes.append((old, new))
    changes += [(old, None) for key, old in known.items() if key not in seen]
    return changes


class Cache(Generic[T]):
    """Objects of one kind by '<namespace>/<name>'. `run` it as a task; `on_change(before, after)` listeners run on the same loop."""

    def __init__(self, client: KubeClient, kind: Kind[T], namespace: str = "", labels: str = "", fields: str = "") -> None:
        self.kind = kind
        self.items: dict[str, T] = {}
        self.synced = asyncio.Event()
        self.relists = 0
        self._client, self._namespace, self._labels, self._fields = client, namespace, labels, fields
        self._listeners: list[Callable[[T | None, T | None], None]] = []
        self._version = ""
        self._broken = 0
        self._in_trouble = False

    def listen(self, on_change: Callable[[T | None, T | None], None]) -> None:
        """Call for every change from now on, and for what the first list finds."""
        self._listeners.append(on_change)

    def get(self, namespace: str, name: str) -> T | None:
        """The object as last seen."""
        return self.items.get(f"{namespace}/{name}" if namespace else name)

    async def run(self) -> None:
        """Follow until cancelled."""
        delay = RETRY_FIRST
        while True:
            try:
                await self._follow()
                delay, self._broken = RETRY_FIRST, 0
            except Gone:
                self._version = ""
            except KubeError as error:
                self._broken += 1
                if self._broken >= RELIST_AFTER and error.status == 0:
                    self._version = ""
                if not self._in_trouble:
                    log.warning("%s: %s; trying again until it works", self.kind.plural, error)
                self._in_trouble = True
                await asyncio.sleep(max(error.retry_after, delay * random.uniform(0.5, 1.0)))
                delay = min(RETRY_LAST, delay * 2)

    async def _follow(self) -> None:
        """List when there is no version to go on from, then watch once."""
        if not self._version:
            await self._list()
        async for kind, item in self._client.watch(self.kind, self._version, self._namespace, self._labels, self._fields):
            self._well()
            if kind == "DELETED":
                self._tell(self.items.get(item.metadata.key), None)
            elif kind != "BOOKMARK":
                self._tell(self.items.get(item.metadata.key), item)
            self._version = item.metadata.resource_version or self._version
        self._well()

    async def _list(self) -> None:
        listed, version = await self._client.list(self.kind, self._namespace, self._labels, self._fields)
        self.relists += 1
        for before, after in difference(self.items, listed):
            self._tell(before, after)
        self._version = version
        self._well()
        self.synced.set()

    def _well(self) -> None:
        if self._in_trouble:
            log.warning("%s: followed again", self.kind.plural)
        self._in_trouble, self._broken = False, 0

    def _tell(self, before: T | None, after: T | None) -> None:
        if after is not None:
            self.items[after.metadata.key] = after
        elif before is not None:
            del self.items[before.metadata.key]
        else:
            return
        for listener in self._listeners:
            try:
                listener(before, after)
            except Exception:
                log.exception("a listener to %s failed", self.kind.plural)
