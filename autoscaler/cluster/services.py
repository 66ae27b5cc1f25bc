"""Knative Services as the leader routes and places them: revisions of one service share one set of members and one map.

A service comes in with its first revision and goes with its last. Percentages come from the Knative Route; a revision that no route names has
no share of the shards. While a service has revisions with a proxy and others without, as when pairing is switched on, it is told as two: those
without a proxy by the name with `/plain` behind it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

from autoscaler.cluster.naming import SERVICE_UID, is_paired, service_of, shards_of
from autoscaler.cluster.shard_maps import ShardMapStore
from autoscaler.coordination import CoordinationServer, RevisionSpec
from autoscaler.placement.by_pod import PlainByPod, ShardsByPod
from autoscaler.placement.plain import PlainMembers
from autoscaler.placement.service import PlacementSettings, ServicePlacement
from cloudstate_core.kube.api import Conflict
from cloudstate_core.kube.objects import PodAutoscaler, Route
from cloudstate_core.pb.cloudstate_knative.v1 import coordination_pb2 as pb

PLAIN = "/plain"
"""Behind the name of a service: its revisions without a proxy, while others have one."""


@dataclass(slots=True)
class Service:
    """One service: its members, its revisions by name, and each revision's share of the traffic in percent."""

    name: str
    placement: ServicePlacement | PlainMembers
    revisions: dict[str, RevisionSpec] = field(default_factory=dict)
    traffic: dict[str, float] = field(default_factory=dict)
    eagerness: dict[str, PlacementSettings] = field(default_factory=dict)
    """How eagerly shards move, as each revision's policy has it; the default revision's counts."""
    uid: str = ""
    """Of the Knative Service that its map was made for; '' = that was not told."""

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
        self._adding: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def get(self, name: str) -> Service | None:
        """A service by the name it is told by: '<namespace>/<name>', perhaps with PLAIN behind it."""
        return self._services.get(name)

    def of(self, pa: PodAutoscaler) -> Service | None:
        """The service that a revision has been added to."""
        return next((s for s in self._parts(service_of(pa)) if pa.metadata.name in s.revisions), None)

    def _parts(self, name: str) -> list[Service]:
        """What a Knative Service is told as."""
        return [found for told in (name, name + PLAIN) if (found := self._services.get(told)) is not None]

    def methods(self, name: str) -> Sequence[pb.Method]:
        """The present method table of a service."""
        service = self._services.get(name)
        return service.placement.methods if service is not None else ()

    async def add_revision(
        self, pa: PodAutoscaler, route: Callable[[], Route | None], timeout: int, settings: PlacementSettings
    ) -> Service:
        """Take a revision in, or take over what changed of it. KubeError when what is kept of its service cannot be read now; Conflict
        while revisions are still here of a service of the name that was deleted: shards and journal of the new one may be others.
        """
        name, revision, uid = service_of(pa), pa.metadata.name, pa.metadata.labels.get(SERVICE_UID, "")
        if is_paired(pa):
            # One at a time: a second look at what is kept would not know what the first one has written since.
            async with self._adding.setdefault(name, asyncio.Lock()):
                service = self._part(name, paired=True) or await self._add_paired(name, pa, settings)
            if service.uid and uid and uid != service.uid:
                raise Conflict(409, "Conflict", f"service {name}: was made again, and revisions from before are still here")
            service.uid = service.uid or uid
        else:
            service = self._part(name, paired=False) or self._add_plain(name)
        service.revisions[revision] = RevisionSpec(revision, 0.0, pa.spec.container_concurrency, timeout)
        service.eagerness[revision] = settings
        self.set_traffic(name, route())
        return service

    def _part(self, name: str, paired: bool) -> Service | None:
        return next((s for s in self._parts(name) if isinstance(s.placement, ServicePlacement) is paired), None)

    async def _add_paired(self, name: str, pa: PodAutoscaler, settings: PlacementSettings) -> Service:
        kept, methods = await self._store.load(name, pa.metadata.labels.get(SERVICE_UID, "")) or (None, [])
        if (plain := self._services.pop(name, None)) is not None:
            plain.name = name + PLAIN
            self._services[plain.name] = plain
            self._coordination.rename_plain(name, plain.name)
        shards = kept.shard_count if kept is not None else shards_of(pa)
        placement = self._coordination.add_service(name, shards, (), pa.metadata.name, settings=settings, kept=kept)
        placement.methods = methods
        service = self._services[name] = Service(name, placement)
        return service

    def _add_plain(self, name: str) -> Service:
        told = name + PLAIN if name in self._services else name
        service = self._services[told] = Service(told, self._coordination.add_plain(told))
        return service

    def remove_revision(self, pa: PodAutoscaler) -> None:
        """A revision is gone; with the last one its service goes."""
        service, revision = self.of(pa), pa.metadata.name
        if service is None:
            return
        service.revisions.pop(revision)
        service.eagerness.pop(revision, None)
        if isinstance(service.placement, PlainMembers):
            service.placement.set_members(revision, {})
        if service.revisions:
            self._route(service)
            return
        del self._services[service.name]
        self._store.forget(service.name)
        self._coordination.remove_service(service.name)

    def set_traffic(self, name: str, route: Route | None) -> None:
        """The route of a service leads elsewhere now."""
        for service in self._parts(name):
            service.traffic = traffic_of(route)
            self._route(service)

    def set_eagerness(self, pa: PodAutoscaler, settings: PlacementSettings) -> None:
        """A revision's policy says so now."""
        service = self.of(pa)
        if service is not None and service.eagerness.get(pa.metadata.name) != settings:
            service.eagerness[pa.metadata.name] = settings
            self._route(service)

    def _route(self, service: Service) -> None:
        shares = {name: service.traffic.get(name, 0.0) for name in service.revisions}
        if not sum(shares.values()):
            # Nothing leads here yet: all revisions are one pool, so that the first pods can serve at once.
            shares = {name: 100.0 / len(shares) for name in shares}
        revisions = [
            RevisionSpec(r.name, shares[r.name], r.container_concurrency, r.timeout_seconds) for r in service.revisions.values()
        ]
        if isinstance(service.placement, ServicePlacement) and (settings := service.eagerness.get(service.default_revision)) is not None:
            service.placement.reconfigure(settings)
        self._coordination.set_routes(service.name, (), service.default_revision, revisions)

    def pod_left(self, name: str, pod: str, ended: bool) -> None:
        """A pod ends, or has ended, whose revision is not ours any more."""
        service = self._services.get(name)
        if service is None or not isinstance(service.placement, ServicePlacement):
            return
        if ended:
            self._coordination.process_exited(name, pod)
        else:
            ShardsByPod(service.placement).drain_pod(pod)
            self._coordination.touch(name)

    def set_plain_members(self, service: Service, revision: str, addresses: dict[str, str]) -> None:
        """The pods of a plain service's revision that take calls, name to host:port."""
        if isinstance(service.placement, PlainMembers):
            service.placement.set_members(revision, addresses)
            self._coordination.touch(service.name)


def shards_by_pod(service: Service) -> ShardsByPod | PlainByPod:
    """The view of a service's members that its scaling loops need."""
    if isinstance(service.placement, PlainMembers):
        return PlainByPod(service.placement)
    return ShardsByPod(service.placement)
