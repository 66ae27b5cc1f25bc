"""ShardMap objects: where the leader keeps each service's map before it tells anybody, and finds it again."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakValueDictionary

from autoscaler.placement.convergence import FORCE_AFTER_MS
from cloudstate_core.kube import objects
from cloudstate_core.kube.api import Conflict, KubeError, NotFound
from cloudstate_core.kube.client import KubeClient
from cloudstate_core.kube.kinds import KNATIVE_SERVICE, SHARD_MAP
from cloudstate_core.pb.cloudstate_knative.v1 import coordination_pb2 as pb
from cloudstate_core.shard_map import Entry, ShardMap


def body_of(kept: ShardMap, methods: Sequence[pb.Method], owner: objects.Object | None) -> dict[str, Any]:
    """The object for a map; it goes with the Knative Service that it belongs to."""
    _, _, name = kept.service.partition("/")
    metadata: dict[str, Any] = {"labels": {"serving.knative.dev/service": name}}
    if owner is not None:
        reference = {"apiVersion": "serving.knative.dev/v1", "kind": "Service", "name": name, "uid": owner.metadata.uid}
        metadata["ownerReferences"] = [reference]
    table = pb.ServiceRoute(methods=methods).SerializeToString(deterministic=True)
    shards = [_entry(entry) for entry in kept.entries]
    owners = {entry.owner for entry in kept.entries} - {""}
    spec = {
        "service": kept.service,
        "generation": kept.generation,
        "journalID": kept.journal_id,
        "methods": base64.b64encode(table).decode(),
        "owners": len(owners),
        "moving": sum(entry.moving for entry in kept.entries),
        "shards": shards,
    }
    return {"metadata": metadata, "spec": spec}


def _entry(entry: Entry) -> dict[str, Any]:
    return {key: value for key, value in (("owner", entry.owner), ("next", entry.next), ("since", entry.since)) if value}


def map_of(found: objects.ShardMap) -> ShardMap:
    """The map that an object holds. Whoever gives a shard up still has its time to drain, counted anew."""
    spec = found.spec
    entries = (Entry(e.owner, e.next, e.since, FORCE_AFTER_MS if e.next else 0) for e in spec.shards)
    return ShardMap(spec.service, spec.journal_id, spec.generation, tuple(entries))


def methods_of(found: objects.ShardMap) -> list[pb.Method]:
    """The method table that an object holds, so that commands are routed by key from the first one after zero."""
    return list(pb.ServiceRoute.FromString(base64.b64decode(found.spec.methods)).methods)


UNKNOWN_LIMIT = 20
"""Maps to remember whose writing may have been heard by the API server although its answer was not."""
RETRY_FIRST, RETRY_LAST = 0.2, 2.0
"""Seconds until a map that was not taken may be written again."""


class Followed(Conflict):
    """Another leader has written a map of its own: this one must not go on from what it knows."""


@dataclass(slots=True)
class _Record:
    """What is known of one service's object."""

    uid: str
    """Of its Knative Service, when its revisions tell that; '' = look for the Service."""
    owner: objects.Object | None
    version: str = ""
    """'' = there is none."""
    ours: list[ShardMap] = field(default_factory=list)
    """What the object may hold by our doing: the map that was read or written last, then those whose writing has an unknown end."""
    delay: float = RETRY_FIRST

    def take(self, kept: ShardMap, found: objects.ShardMap) -> None:
        """The object holds this map."""
        self.ours, self.version, self.delay = [kept], found.metadata.resource_version, RETRY_FIRST


class ShardMapStore:
    """Reads and writes the objects; `methods(service)` gives the present method table.

    A map is written only over the one that was read or written before: a leader that has been followed by another cannot undo its work.
    What somebody else did to the object without another map in it (a label, a deletion) is no reason to stop.
    """

    def __init__(self, client: KubeClient, methods: Callable[[str], Sequence[pb.Method]]) -> None:
        self._client, self._methods = client, methods
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._records: dict[str, _Record] = {}

    async def load(self, service: str, uid: str = "") -> tuple[ShardMap, list[pb.Method]] | None:
        """What is kept of a service, or None; once, before the first `keep`. KubeError when that cannot be known now.

        `uid` = of its Knative Service: by the time of the look that may be gone already, or be another one of the name.
        """
        async with self._lock(service):
            return await self._load(service, uid)

    async def _load(self, service: str, uid: str) -> tuple[ShardMap, list[pb.Method]] | None:
        namespace, _, name = service.partition("/")
        record = self._records[service] = _Record(uid, await self._owner(service, uid))
        try:
            found = await self._client.get(SHARD_MAP, namespace, name)
        except NotFound:
            return None
        kept = map_of(found)
        record.take(kept, found)
        if _of_an_earlier_service(found, record.owner):
            return None
        return kept, methods_of(found)

    async def _owner(self, service: str, uid: str) -> objects.Object | None:
        namespace, _, name = service.partition("/")
        if uid:
            return objects.Object(objects.Metadata(name, namespace, uid))
        with contextlib.suppress(NotFound):
            return await self._client.get(KNATIVE_SERVICE, namespace, name)
        return None

    async def keep(self, kept: ShardMap) -> None:
        """Write a map. Followed when another leader has written meanwhile; another KubeError when it may not be written, after a pause:
        who decides tries again at once. A service that was forgotten has no map to keep.
        """
        record = self._records.get(kept.service)
        if record is None:
            return
        try:
            async with self._lock(kept.service):
                await self._keep(record, kept)
        except Followed:
            raise
        except KubeError as error:
            pause, record.delay = max(record.delay, error.retry_after), min(RETRY_LAST, record.delay * 2)
            await asyncio.sleep(pause)
            raise

    async def _keep(self, record: _Record, kept: ShardMap) -> None:
        if record.owner is None:  # it was just being made again when it was looked for
            record.owner = await self._owner(kept.service, record.uid)
        record.ours[1:] = [*record.ours[1:][-UNKNOWN_LIMIT:], kept]
        try:
            written = await self._write(record, kept)
        except NotFound:
            # Also because the service was deleted, and perhaps made again: a map must not outlive its service, nor go with an earlier one.
            record.version, record.owner = "", await self._owner(kept.service, record.uid) or record.owner
            if self._records.get(kept.service) is not record:
                return
            written = await self._write(record, kept)
        except Conflict:
            await self._look_again(record, kept.service)
            written = await self._write(record, kept)
        record.take(kept, written)

    def _lock(self, service: str) -> asyncio.Lock:
        """One call at a time for a service: a map that is being written is not read by who takes the service in again."""
        return self._locks.setdefault(service, asyncio.Lock())

    async def _write(self, record: _Record, kept: ShardMap) -> objects.ShardMap:
        namespace, _, name = kept.service.partition("/")
        body = body_of(kept, self._methods(kept.service), record.owner)
        body["metadata"]["name"] = name
        if not record.version:
            return await self._client.create(SHARD_MAP, namespace, body)
        body["metadata"]["resourceVersion"] = record.version
        return await self._client.replace(SHARD_MAP, namespace, name, body)

    async def _look_again(self, record: _Record, service: str) -> None:
        """The object is another one than was known: go on when its map is ours all the same. Followed when it is not."""
        namespace, _, name = service.partition("/")
        found = await self._client.get(SHARD_MAP, namespace, name)
        there = map_of(found)
        if not any(_same(there, one) for one in record.ours):
            raise Followed(409, "Conflict", f"shard map {service}: generation {there.generation} was written by another leader")
        record.version = found.metadata.resource_version

    def forget(self, service: str) -> None:
        """A service is no longer ours to place."""
        self._records.pop(service, None)


def _of_an_earlier_service(found: objects.ShardMap, owner: objects.Object | None) -> bool:
    """True for what a service left that was deleted and made again under its name: the API server has yet to delete it, or never will, as
    it was written when that service was gone already.
    """
    return owner is not None and all(each.uid != owner.metadata.uid for each in found.metadata.owner_references)


def _same(a: ShardMap, b: ShardMap) -> bool:
    """True when two maps say the same of every shard."""
    shards = [[(e.owner, e.next, e.since) for e in one.entries] for one in (a, b)]
    return a.generation == b.generation and a.journal_id == b.journal_id and shards[0] == shards[1]
