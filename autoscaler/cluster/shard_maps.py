"""ShardMap objects: where the leader keeps each service's map before it tells anybody, and finds it again."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from cloudstate_core.kube import objects
from cloudstate_core.kube.api import NotFound
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
    """The map that an object holds."""
    spec = found.spec
    return ShardMap(spec.service, spec.journal_id, spec.generation, tuple(Entry(e.owner, e.next, e.since) for e in spec.shards))


def methods_of(found: objects.ShardMap) -> list[pb.Method]:
    """The method table that an object holds, so that commands are routed by key from the first one after zero."""
    return list(pb.ServiceRoute.FromString(base64.b64decode(found.spec.methods)).methods)


class ShardMapStore:
    """Reads and writes the objects; `methods(service)` gives the present method table.

    A map is written only over the one that was read or written before: a leader that has been followed by another cannot undo its work.
    """

    def __init__(self, client: KubeClient, methods: Callable[[str], Sequence[pb.Method]]) -> None:
        self._client, self._methods = client, methods
        self._owners: dict[str, objects.Object] = {}
        self._versions: dict[str, str] = {}

    async def load(self, service: str) -> tuple[ShardMap, list[pb.Method]] | None:
        """What is kept of a service, or None. KubeError when that cannot be known now."""
        namespace, _, name = service.partition("/")
        self.forget(service)
        with contextlib.suppress(NotFound):
            self._owners[service] = await self._client.get(KNATIVE_SERVICE, namespace, name)
        try:
            found = await self._client.get(SHARD_MAP, namespace, name)
        except NotFound:
            return None
        self._versions[service] = found.metadata.resource_version
        return map_of(found), methods_of(found)

    async def keep(self, kept: ShardMap) -> None:
        """Write a map. Conflict when another leader has written meanwhile; another KubeError when it may not be written."""
        service = kept.service
        namespace, _, name = service.partition("/")
        body = body_of(kept, self._methods(service), self._owners.get(service))
        body["metadata"]["name"] = name
        if service in self._versions:
            body["metadata"]["resourceVersion"] = self._versions[service]
            written = await self._client.replace(SHARD_MAP, namespace, name, body)
        else:
            written = await self._client.create(SHARD_MAP, namespace, body)
        self._versions[service] = written.metadata.resource_version

    def forget(self, service: str) -> None:
        """A service is no longer ours to place."""
        self._owners.pop(service, None)
        self._versions.pop(service, None)
