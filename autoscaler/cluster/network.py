"""Keeps the Services and slices of revisions as they should be; what has not changed is not written again."""

from __future__ import annotations

import json
from collections.abc import Sequence

from autoscaler.cluster.naming import MANAGER
from autoscaler.cluster.networking import Body, private_service, public_endpoints, public_service, public_slice
from cloudstate_core.kube.api import Kind, NotFound
from cloudstate_core.kube.client import KubeClient
from cloudstate_core.kube.kinds import ENDPOINT_SLICE, ENDPOINTS, SERVICE
from cloudstate_core.kube.objects import Object, PodAutoscaler


class Network:
    """Writes the network of revisions."""

    def __init__(self, client: KubeClient, endpoints_too: bool = False) -> None:
        """`endpoints_too`: write core Endpoints as well, for ingresses that read those (Kourier before 1.21)."""
        self._client, self._endpoints_too = client, endpoints_too
        self._written: dict[str, dict[str, str]] = {}
        """By PodAutoscaler uid and object: what was applied last."""

    async def foreign(self, pa: PodAutoscaler) -> bool:
        """True when the Service of the revision's name is controlled by something else, as after a change of class."""
        if pa.metadata.uid in self._written:
            return False
        try:
            found = await self._client.get(SERVICE, pa.metadata.namespace, pa.metadata.name)
        except NotFound:
            return False
        owners = [owner for owner in found.metadata.owner_references if owner.controller]
        return any(owner.uid != pa.metadata.uid for owner in owners) or not owners

    async def ensure(self, pa: PodAutoscaler, activators: Sequence[str]) -> bool:
        """Write what differs from the last time; True when traffic can reach an activator."""
        await self._apply(pa, SERVICE, public_service(pa))
        await self._apply(pa, SERVICE, private_service(pa))
        if activators:
            await self._apply(pa, ENDPOINT_SLICE, public_slice(pa, activators))
            if self._endpoints_too:
                await self._apply(pa, ENDPOINTS, public_endpoints(pa, activators))
        return f"{ENDPOINT_SLICE.plural}/{pa.metadata.name}-activators" in self._written.get(pa.metadata.uid, {})

    async def _apply(self, pa: PodAutoscaler, kind: Kind[Object], body: Body) -> None:
        name, text = body["metadata"]["name"], json.dumps(body, sort_keys=True)
        written = self._written.setdefault(pa.metadata.uid, {})
        if written.get(f"{kind.plural}/{name}") == text:
            return
        await self._client.apply(kind, pa.metadata.namespace, name, body, MANAGER)
        written[f"{kind.plural}/{name}"] = text

    def lost(self, uid: str) -> None:
        """Something of a revision's network was deleted or changed by somebody else: write all of it again."""
        if uid in self._written:
            self._written[uid] = {}

    def forget(self, uid: str) -> None:
        """The revision is gone; the API server deletes what it owned."""
        self._written.pop(uid, None)
