"""Keeps the Services and slices of revisions as they should be: what somebody deletes or edits comes back, what is right is not written.

An object of the name that another controller owns is never touched.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping, Sequence
from typing import Any

from autoscaler.cluster.naming import MANAGER
from autoscaler.cluster.networking import (
    Body,
    NetworkObject,
    is_as_wanted,
    owned_by,
    private_service,
    public_endpoints,
    public_service,
    public_slice,
    slice_name,
)
from cloudstate_core.kube.api import Conflict, Kind
from cloudstate_core.kube.client import KubeClient
from cloudstate_core.kube.kinds import ENDPOINT_SLICE, ENDPOINTS, SERVICE
from cloudstate_core.kube.objects import Endpoints, EndpointSlice, PodAutoscaler, Service


class Path(enum.Enum):
    """Whether calls find their way to a revision."""

    FOREIGN = "another controller owns an object of the revision's name"
    OPEN = "no activator has been seen yet"
    READY = "traffic can reach an activator"


class Network:
    """Writes the network of revisions. `services` and the rest are what the API server has, by '<namespace>/<name>', as last seen."""

    def __init__(
        self,
        client: KubeClient,
        services: Mapping[str, Service],
        slices: Mapping[str, EndpointSlice],
        endpoints: Mapping[str, Endpoints] | None = None,
    ) -> None:
        """With `endpoints` core Endpoints are written as well, for ingresses that read those (Kourier before 1.21)."""
        self._client, self._services, self._slices, self._endpoints = client, services, slices, endpoints
        self._written: dict[str, dict[str, str]] = {}
        """By PodAutoscaler ('<namespace>/<name>') and object: what was written since the object was last seen to change."""

    async def ensure(self, pa: PodAutoscaler, activators: Sequence[str]) -> Path:
        """Write what is not as it should be. KubeError when the API server refuses."""
        for body in (public_service(pa), private_service(pa)):
            if not await self._bring(pa, SERVICE, self._services.get(f"{pa.metadata.namespace}/{body['metadata']['name']}"), body):
                return Path.FOREIGN
        held = self._slices.get(f"{pa.metadata.namespace}/{slice_name(pa)}")
        if activators:
            # Also because Kubernetes deletes them with the Service, which comes back.
            if self._endpoints is not None and not await self._bring(
                pa, ENDPOINTS, self._endpoints.get(pa.metadata.key), public_endpoints(pa, activators)
            ):
                return Path.FOREIGN
            return Path.READY if await self._bring(pa, ENDPOINT_SLICE, held, public_slice(pa, activators)) else Path.FOREIGN
        # All activators are gone: the slice stays as it is, since an ingress drops the hosts of a service without endpoints.
        written = f"{ENDPOINT_SLICE.plural}/{slice_name(pa)}" in self._written.get(pa.metadata.key, {})
        return Path.READY if written or (held is not None and owned_by(held, pa) and held.endpoints) else Path.OPEN

    async def _bring(self, pa: PodAutoscaler, kind: Kind[Any], found: NetworkObject | None, body: Body) -> bool:
        """Make one object as wanted; False when it is somebody else's."""
        if found is not None and not owned_by(found, pa):
            return False
        name, text = f"{kind.plural}/{body['metadata']['name']}", json.dumps(body, sort_keys=True)
        written = self._written.setdefault(pa.metadata.key, {})
        if written.get(name) == text:
            return True
        if found is not None and is_as_wanted(found, body):
            written[name] = text
            return True
        written[name] = text  # before the call, so that a change seen meanwhile counts as one after it
        ours = True
        try:
            if found is None:
                ours = await self._create(pa, kind, body)
            else:
                await self._client.apply(kind, pa.metadata.namespace, body["metadata"]["name"], body, MANAGER)
        except BaseException:
            written.pop(name, None)
            raise
        if not ours:
            written.pop(name, None)
        return ours

    async def _create(self, pa: PodAutoscaler, kind: Kind[Any], body: Body) -> bool:
        """Make an object that was not seen; one that is there all the same is taken over when it is this PodAutoscaler's."""
        namespace, name = pa.metadata.namespace, body["metadata"]["name"]
        try:
            await self._client.create(kind, namespace, body)
        except Conflict:
            if not owned_by(await self._client.get(kind, namespace, name), pa):
                return False
            await self._client.apply(kind, namespace, name, body, MANAGER)
        return True

    def changed(self, found: NetworkObject) -> list[str]:
        """An object of ours was changed or deleted, by whomever: look at it again. Keys of the PodAutoscalers that it belongs to."""
        kind = next(kind for kind in (SERVICE, ENDPOINT_SLICE, ENDPOINTS) if isinstance(found, kind.model))
        keys = [f"{found.metadata.namespace}/{owner.name}" for owner in found.metadata.owner_references if owner.controller]
        for key in keys:
            self._written.get(key, {}).pop(f"{kind.plural}/{found.metadata.name}", None)
        return keys

    def listed(self) -> None:
        """Objects were listed: what was written before may have been deleted since without having been seen at all."""
        self._written.clear()

    def forget(self, key: str) -> None:
        """The PodAutoscaler is gone; the API server deletes what it owned. Not while `ensure` works on it, which would remember it again."""
        self._written.pop(key, None)
