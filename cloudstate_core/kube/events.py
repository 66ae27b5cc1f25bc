"""Events that `kubectl describe` shows: what happened to an object and why, each told once until something else is.

A lost event costs a line in a view, so that trouble with the API server is logged and forgotten.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from datetime import UTC, datetime

from cloudstate_core.kube.api import Body, Kind, KubeError, TooManyRequests
from cloudstate_core.kube.client import KubeClient
from cloudstate_core.kube.kinds import EVENT
from cloudstate_core.kube.objects import Object, timestamp

log = logging.getLogger(__name__)
NOTE_LIMIT = 1_000
"""Bytes of a note that the API takes."""
INSTANCE_LIMIT = 128
"""Characters of a reporter's name that the API takes."""

AT_ONCE = 8
"""Writes under way at once: what is told of many objects after a start must not crowd out other calls."""
TRIES, PATIENCE = 5, 0.5
"""How often a write is tried that the API server is too busy for, and the least seconds in between."""


class Recorder:
    """Writes events as `component`."""

    def __init__(self, client: KubeClient, component: str, instance: str) -> None:
        self._client, self._component, self._instance = client, component, instance[:INSTANCE_LIMIT]
        self._tasks: set[asyncio.Task[None]] = set()
        self._told: dict[tuple[str, str], tuple[str, str]] = {}
        """Reason and note told last, by the object's uid and the topic."""
        self._gate = asyncio.Semaphore(AT_ONCE)

    def tell(self, kind: Kind[Object], subject: Object, reason: str, note: str, warning: bool = False, topic: str = "") -> None:
        """Write an event about an object, unless it says what the last one of its topic said.

        Reasons that end one another (connected, unreachable) have a topic in common; without one a reason is its own topic.
        """
        key, told = (subject.metadata.uid, topic or reason), (reason, note)
        if self._told.get(key) == told:
            return
        self._told[key] = told
        task = asyncio.get_running_loop().create_task(self._write(kind, subject, reason, note, warning))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def last(self, uid: str, topic: str) -> str:
        """Reason of the last event about an object in a topic; '' when there was none."""
        return self._told.get((uid, topic), ("", ""))[0]

    def forget(self, uid: str) -> None:
        """An object is gone."""
        for key in [key for key in self._told if key[0] == uid]:
            del self._told[key]

    async def close(self) -> None:
        """Give up what is not written yet."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _write(self, kind: Kind[Object], subject: Object, reason: str, note: str, warning: bool) -> None:
        metadata = subject.metadata
        body = {
            "metadata": {"name": f"{metadata.name[:200].rstrip('-.')}.{secrets.token_hex(8)}"},
            "regarding": {
                "apiVersion": kind.api_version,
                "kind": kind.kind,
                "namespace": metadata.namespace,
                "name": metadata.name,
                "uid": metadata.uid,
            },
            "reason": reason,
            "note": note.encode()[:NOTE_LIMIT].decode(errors="ignore"),
            "type": "Warning" if warning else "Normal",
            "action": reason,
            "eventTime": timestamp(datetime.now(UTC), "microseconds"),
            "reportingController": f"cloudstate.io/{self._component}",
            "reportingInstance": self._instance,
        }
        try:
            async with self._gate:
                await self._create(metadata.namespace or "default", body)
        except KubeError as error:
            log.info("event %s about %s was not written: %s", reason, metadata.key, error)

    async def _create(self, namespace: str, body: Body) -> None:
        for left in reversed(range(TRIES)):
            try:
                await self._client.create(EVENT, namespace, body)
                return
            except TooManyRequests as error:
                if not left:
                    raise
                await asyncio.sleep(max(error.retry_after, PATIENCE))
