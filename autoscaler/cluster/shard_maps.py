"""ShardMap objects: where the leader keeps each service's map before it tells anybody, and finds it again."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakValueDictionary

from autoscaler.placement.convergence import FORCE_AFTER_MS
from cloudstate_core.kube import objects
from cloudstate_core.kube.api import Conflict, NotFound
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


class ShardMapStore:
    """Reads and writes the objects; `methods(service)` gives the present method table.

    A map is written only over the one that was read or written before: a leader that has been followed by another cannot undo its work.
    What somebody else did to the object without another map in it (a label, a deletion) is no reason to stop.
    """

    def __init__(self, client: KubeClient, methods: Callable[[str], Sequence[pb.Method]]) -> None:
        self._client, self._methods = client, methods
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._owners: dict[str, objects.Object] = {}
        self._versions: dict[str, str] = {}
        self._ours: dict[str, list[ShardMap]] = {}
        """What the object may hold by our doing: the map that was read or written last, then those whose writing has an unknown end."""

    async def load(self, service: str) -> tuple[ShardMap, list[pb.Method]] | None:
        """What is kept of a service, or None; once, before the first `keep`. KubeError when that cannot be known now."""
        async with self._lock(service):
            return await self._load(service)

    async def _load(self, service: str) -> tuple[ShardMap, list[pb.Method]] | None:
        namespace, _, name = service.partition("/")
        self.forget(service)
        with contextlib.suppress(NotFound):
            self._owners[service] = await self._client.get(KNATIVE_SERVICE, namespace, name)
        try:
            found = await self._client.get(SHARD_MAP, namespace, name)
        except NotFound:
            return None
        kept = map_of(found)
        self._written(service, kept, found)
        return kept, methods_of(found)

    async def keep(self, kept: ShardMap) -> None:
        """Write a map. Conflict when another leader has written meanwhile; another KubeError when it may not be written."""
        async with self._lock(kept.service):
            await self._keep(kept)

    async def _keep(self, kept: ShardMap) -> None:
        service = kept.service
        ours = self._ours.setdefault(service, [])
        ours[1:] = [*ours[1:][-UNKNOWN_LIMIT:], kept]
        try:
            written = await self._write(kept)
        except NotFound:
            self._versions.pop(service, None)
            written = await self._write(kept)
        except Conflict:
            await self._look_again(service)
            written = await self._write(kept)
        self._written(service, kept, written)

    def _lock(self, service: str) -> asyncio.Lock:
        """One call at a time for a service: a map that is being written is not read by who takes the service in again."""
        return self._locks.setdefault(service, asyncio.Lock())

    async def _write(self, kept: ShardMap) -> objects.ShardMap:
        service = kept.service
        namespace, _, name = service.partition("/")
        body = body_of(kept, self._methods(service), self._owners.get(service))
        body["metadata"]["name"] = name
        if service not in self._versions:
            return await self._client.create(SHARD_MAP, namespace, body)
        body["metadata"]["resourceVersion"] = self._versions[service]
        return await self._client.replace(SHARD_MAP, namespace, name, body)

    async def _look_again(self, service: str) -> None:
        """The object is another one than was known: go on when its map is ours all the same. Conflict when it is not."""
        namespace, _, name = service.partition("/")
        found = await self._client.get(SHARD_MAP, namespace, name)
        there = map_of(found)
        if not any(_same(there, one) for one in self._ours.get(service, ())):
            raise Conflict(409, "Conflict", f"shard map {service}: generation {there.generation} was written by another leader")
        self._versions[service] = found.metadata.resource_version

    def forget(self, service: str) -> None:
        """A service is no longer ours to place."""
        for held in (self._owners, self._versions, self._ours):
            held.pop(service, None)

    def _written(self, service: str, kept: ShardMap, found: objects.ShardMap) -> None:
        self._ours[service] = [kept]
        self._versions[service] = found.metadata.resource_version


def _same(a: ShardMap, b: ShardMap) -> bool:
    """True when two maps say the same of every shard."""
    shards = [[(e.owner, e.next, e.since) for e in one.entries] for one in (a, b)]
    return a.generation == b.generation and a.journal_id == b.journal_id and shards[0] == shards[1]
