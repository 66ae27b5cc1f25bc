"""A local copy of some objects that follows the API server: list, then watch from there; told changes go to listeners.

Guarantees: after `synced` the copy holds every object of the selection; each change is told once, in order, with the object as it was; a
relist (after 410, or a lost watch that cannot go on) is told as the difference to what was known, deletions included; what came and went
between two lists is told by nobody, so that whoever has made something asks to hear of lists. Trouble is logged
once per outage and never ends the cache; it waits as the server asks (429) or with a growing delay, and it never asks in a tight loop,
whatever the answers are.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Iterable, Mapping
from typing import Generic, TypeVar

from cloudstate_core.kube.api import Gone, Kind, KubeError, TooManyRequests
from cloudstate_core.kube.client import KubeClient
from cloudstate_core.kube.objects import Object

log = logging.getLogger(__name__)

T = TypeVar("T", bound=Object)
RETRY_FIRST, RETRY_LAST = 0.1, 10.0
RELIST_AFTER = 3
"""Watches in a row that break without news before the cache lists again, in case its version is the trouble."""
LASTING = 1.0
"""Seconds that a watch without news must last to count as one that works."""


def difference(known: Mapping[str, T], listed: Iterable[T]) -> list[tuple[T | None, T | None]]:
    """(before, after) for each object that a list shows as new, changed (another resource version) or gone.

    One that was deleted and made again under its name (another uid) is both gone and new.
    """
    changes: list[tuple[T | None, T | None]] = []
    seen = set()
    for new in listed:
        key = new.metadata.key
        seen.add(key)
        old = known.get(key)
        if old is not None and old.metadata.uid != new.metadata.uid:
            changes += [(old, None), (None, new)]
        elif old is None or old.metadata.resource_version != new.metadata.resource_version:
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
        self._list_listeners: list[Callable[[], None]] = []
        self._version = ""
        self._broken = 0
        self._delay = RETRY_FIRST
        self._in_trouble = False

    def listen(self, on_change: Callable[[T | None, T | None], None]) -> None:
        """Call for every change from now on, and for what the first list finds."""
        self._listeners.append(on_change)

    def listen_to_lists(self, on_list: Callable[[], None]) -> None:
        """Call after each list, once its changes have been told."""
        self._list_listeners.append(on_list)

    def get(self, namespace: str, name: str) -> T | None:
        """The object as last seen."""
        return self.items.get(f"{namespace}/{name}" if namespace else name)

    async def run(self) -> None:
        """Follow until cancelled."""
        while True:
            try:
                await self._follow()
            except KubeError as error:
                await asyncio.sleep(self._trouble(error))

    def _trouble(self, error: KubeError) -> float:
        """Decide how to go on; seconds to wait before."""
        pause = max(error.retry_after, self._delay * random.uniform(0.5, 1.0))
        first = self._delay == RETRY_FIRST
        self._delay = min(RETRY_LAST, self._delay * 2)
        if isinstance(error, Gone):
            self._version = ""
            if first:
                return pause  # versions grow old: no trouble, unless the new one is gone at once too
        elif error.reason != "Connection" and not isinstance(error, TooManyRequests):
            self._broken += 1
            if self._broken >= RELIST_AFTER:
                self._version, self._broken = "", 0
        if not self._in_trouble:
            log.warning("%s: %s; trying again until it works", self.kind.plural, error)
        self._in_trouble = True
        return pause

    async def _follow(self) -> None:
        """List when there is no version to go on from, then watch once."""
        if not self._version:
            await self._list()
        began = asyncio.get_running_loop().time()
        changes = self._client.watch(self.kind, self._version, self._namespace, self._labels, self._fields)
        news = False
        async with contextlib.aclosing(changes):
            async for kind, item in changes:
                news = True
                self._well()
                self._version = item.metadata.resource_version or self._version
                if kind == "DELETED":
                    self._tell(self.items.get(item.metadata.key), None)
                elif kind != "BOOKMARK":
                    self._tell(self.items.get(item.metadata.key), item)
        if not news and asyncio.get_running_loop().time() - began < LASTING:
            raise KubeError(0, "Watch", f"the watch of {self.kind.plural} ended at once")
        self._well()

    async def _list(self) -> None:
        listed, version = await self._client.list(self.kind, self._namespace, self._labels, self._fields)
        self.relists += 1
        for before, after in difference(self.items, listed):
            self._tell(before, after)
        self._version = version
        self.synced.set()
        for listener in self._list_listeners:
            try:
                listener()
            except Exception:
                log.exception("a listener to lists of %s failed", self.kind.plural)

    def _well(self) -> None:
        """A watch works: that, and not a list, is what ends an outage."""
        if self._in_trouble:
            log.warning("%s: followed again", self.kind.plural)
        self._in_trouble, self._broken, self._delay = False, 0, RETRY_FIRST

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
