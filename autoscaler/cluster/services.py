"""Knative Services as the leader routes and places them: revisions of one service share one set of members and one map.

A service comes in with its first revision and goes with its last. Percentages come from the Knative Route; a revision that no route names has
no share of the shards.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from autoscaler.cluster.naming import is_paired, service_of, shards_of
from autoscaler.cluster.shard_maps import ShardMapStore
from autoscaler.coordination import CoordinationServer, RevisionSpec
from autoscaler.placement.by_pod import PlainByPod, ShardsByPod
from autoscaler.placement.plain import PlainMembers
from autoscaler.placement.service import PlacementSettings, ServicePlacement
from cloudstate_core.kube.objects import PodAutoscaler, Route
from cloudstate_core.pb.cloudstate_knative.v1 import coordination_pb2 as pb

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Service:
    """One service: its members, its revisions by name, and each revision's share of the traffic in percent."""

    name: str
    placement: ServicePlacement | PlainMembers
    revisions: dict[str, RevisionSpec] = field(default_factory=dict)
    traffic: dict[str, float] = field(default_factory=dict)

    @property
    def default_revision(self) -> str:
        """The one with the largest share; of equals the newest name."""
        return max(self.revisions, key=lambda name: (self.traffic.get(name, 0.0), name), default="")


def traffic_of(route: Route | None) -> dict[str, float]:
    """Revision → percent, as the route leads at present."""
    shares: dict[str, float] = {}
    for target in route.status.traffic if route is not None else ():
        shares[target.revision_name] = shares.get(target.revision_name, 0.0) + (target.percent or 0)
    return shares


class Services:
    """All services that have a revision of our class."""

    def __init__(self, coordination: CoordinationServer, store: ShardMapStore) -> None:
        self._coordination, self._store = coordination, store
        self._services: dict[str, Service] = {}

    def get(self, name: str) -> Service | None:
        """A service by '<namespace>/<name>'."""
        return self._services.get(name)

    def methods(self, name: str) -> Sequence[pb.Method]:
        """The present method table of a service."""
        service = self._services.get(name)
        return service.placement.methods if service is not None else ()

    async def add_revision(self, pa: PodAutoscaler, route: Route | None, timeout: int, settings: PlacementSettings) -> Service:
        """Take a revision in, or take over what changed of it. KubeError when what is kept of its service cannot be read now."""
        name = service_of(pa)
        service = self._services.get(name) or await self._add(name, pa, settings)
        service.revisions[pa.metadata.name] = RevisionSpec(pa.metadata.name, 0.0, pa.spec.container_concurrency, timeout)
        self.set_traffic(name, route)
        return service

    async def _add(self, name: str, pa: PodAutoscaler, settings: PlacementSettings) -> Service:
        placement: ServicePlacement | PlainMembers
        if is_paired(pa):
            found = await self._store.load(name)
            kept, methods = found or (None, [])
            if name in self._services:
                return self._services[name]
            shards = kept.shard_count if kept is not None else shards_of(pa)
            placement = self._coordination.add_service(name, shards, (), pa.metadata.name, settings=settings, kept=kept)
            placement.methods = methods
        else:
            placement = self._coordination.add_plain(name)
        service = self._services[name] = Service(name, placement)
        return service

    def remove_revision(self, name: str, revision: str) -> None:
        """A revision is gone; with the last one its service goes."""
        service = self._services.get(name)
        if service is None:
            return
        service.revisions.pop(revision, None)
        if isinstance(service.placement, PlainMembers):
            service.placement.set_members(revision, {})
        if service.revisions:
            self._route(service)
            return
        del self._services[name]
        self._store.forget(name)
        self._coordination.remove_service(name)

    def set_traffic(self, name: str, route: Route | None) -> None:
        """The route of a service leads elsewhere now."""
        service = self._services.get(name)
        if service is not None:
            service.traffic = traffic_of(route)
            self._route(service)

    def _route(self, service: Service) -> None:
        shares = {name: service.traffic.get(name, 0.0) for name in service.revisions}
        if not sum(shares.values()):
            # Nothing leads here yet: all revisions are one pool, so that the first pods can serve at once.
            shares = {name: 100.0 / len(shares) for name in shares}
        revisions = [
            RevisionSpec(r.name, shares[r.name], r.container_concurrency, r.timeout_seconds) for r in service.revisions.values()
        ]
        self._coordination.set_routes(service.name, (), service.default_revision, revisions)

    def set_plain_members(self, name: str, revision: str, addresses: dict[str, str]) -> None:
        """The pods of a plain service's revision that take calls, name to host:port."""
        service = self._services.get(name)
        if service is not None and isinstance(service.placement, PlainMembers):
            service.placement.set_members(revision, addresses)
            self._coordination.touch(name)


def shards_by_pod(service: Service) -> ShardsByPod | PlainByPod:
    """The view of a service's members that its scaling loops need."""
    if isinstance(service.placement, PlainMembers):
        return PlainByPod(service.placement)
    return ShardsByPod(service.placement)
