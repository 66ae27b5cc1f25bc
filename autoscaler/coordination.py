"""The leader's gRPC service: proxies join and beat, activators report and learn routes. A thin driver around `ServicePlacement`.

A map is kept first and pushed after: nobody is told what a successor of this leader would not know. A new stream gets the whole map, then only
changes; an acknowledgement never names a map that has not been sent before it. A stream that breaks proves nothing: its member is suspected
when it stays silent. `process_exited` is proof.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio

from autoscaler.placement.plain import PlainMembers
from autoscaler.placement.service import PlacementSettings, ServicePlacement
from cloudstate_core.pb.cloudstate_knative.v1 import coordination_pb2 as pb
from cloudstate_core.shard_map import ShardMap, free_map

log = logging.getLogger(__name__)

TICK = 0.2
"""Seconds between looks at suspicion and balance of every service; what happens to one is decided on at once."""
MAX_QUEUED = 1_000
"""Messages that may wait for one stream; a peer that does not read is disconnected and comes back for the whole map."""

Persist = Callable[[ShardMap], Awaitable[None]]
"""Keeps a map so that a later leader finds it. When it fails the map is not pushed, and keeping it is tried again at the next tick."""


@dataclass(frozen=True, slots=True)
class RevisionSpec:
    """What routing needs to know of a revision. `percent` = its share of the traffic."""

    name: str
    percent: float = 100.0
    container_concurrency: int = 0
    """Requests at a pod at the same time; 0 = any number."""
    timeout_seconds: int = 300


@dataclass(slots=True, eq=False)
class _Peer:
    """One open stream; `sent` = generation of each service's map that it has, -1 for none; the last item None ends the stream."""

    queue: asyncio.Queue[Any] = field(default_factory=lambda: asyncio.Queue(MAX_QUEUED))
    sent: dict[str, int] = field(default_factory=dict)
    members: frozenset[str] = frozenset()
    """Of its service, as it was told last."""

    def put(self, message: Any) -> None:
        try:
            self.queue.put_nowait(message)
        except asyncio.QueueFull:
            while not self.queue.empty():
                self.queue.get_nowait()
            self.queue.put_nowait(None)


@dataclass(slots=True)
class _Service:
    placement: ServicePlacement | PlainMembers
    hosts: Sequence[str]
    default_revision: str
    revisions: Sequence[RevisionSpec]
    kept: ShardMap
    """The newest map that is kept, the only one that is told."""
    members: dict[str, _Peer] = field(default_factory=dict)
    route: bytes = b""
    """The last route pushed, without the map: to see whether it changed."""
    step: asyncio.Task[None] | None = None
    """The present decision, or the last one: one at a time."""

    @property
    def changes_with_time(self) -> bool:
        """Something may have to be decided or kept although nothing has happened."""
        return not self.placement.quiet or self.placement.map.generation > self.kept.generation


class CoordinationServer:
    """Serves CoordinationService for some services.

    `on_heard(activator)` is called for each message of an activator, then `on_stats(activator, RevisionStats)` for all that it tells;
    `on_members(service)` when the members that take calls are others than before.
    """

    def __init__(self, clock: Callable[[], float], persist: Persist | None = None) -> None:
        self._clock, self._persist = clock, persist
        self._services: dict[str, _Service] = {}
        self._activators: set[_Peer] = set()
        self._wake = asyncio.Event()
        self._touched: dict[str, None] = {}
        self._server: grpc.aio.Server | None = None
        self.on_stats: Callable[[str, pb.RevisionStats], None] = lambda activator, stats: None
        self.on_heard: Callable[[str], None] = lambda activator: None
        self.on_members: Callable[[str], None] = lambda service: None

    def add_service(
        self,
        name: str,
        shard_count: int,
        hosts: Sequence[str],
        default_revision: str,
        container_concurrency: int = 0,
        timeout_seconds: int = 300,
        settings: PlacementSettings | None = None,
        kept: ShardMap | None = None,
    ) -> ServicePlacement:
        """Take a service in, with its one revision (`set_routes` for more); its placement. `kept` = its map as an earlier leader wrote it;
        without one, generations start from the wall clock's milliseconds, above those of any earlier leader (the journal refuses older ones).
        """
        first = kept or free_map(name, "", shard_count, time.time_ns() // 1_000_000)
        placement = ServicePlacement(name, shard_count, settings, first)
        revision = RevisionSpec(default_revision, 100.0, container_concurrency, timeout_seconds)
        self._services[name] = _Service(placement, tuple(hosts), default_revision, (revision,), first)
        return placement

    def add_plain(self, name: str) -> PlainMembers:
        """Take in a service without a proxy (`set_routes` must follow); its members, to be told by the caller, with a `touch` after."""
        members = PlainMembers(name)
        self._services[name] = _Service(members, (), "", (), members.map)
        return members

    def rename_plain(self, old: str, new: str) -> None:
        """Tell a service without a proxy by another name: at once, so that the old name may mean something else after. KeyError for an
        unknown service."""
        found = self._services.pop(old)
        assert isinstance(found.placement, PlainMembers), f"service {old} has proxies, which know its name"
        found.placement.rename(new)
        found.kept, found.route = found.placement.map, b""
        self._services[new] = found
        self._push(found)
        for activator in self._activators:
            activator.sent.pop(old, None)

    def set_routes(self, service: str, hosts: Sequence[str], default_revision: str, revisions: Sequence[RevisionSpec]) -> None:
        """New hosts, revisions and traffic percentages; shards follow the percentages. KeyError for an unknown service."""
        found = self._services[service]
        found.hosts, found.default_revision, found.revisions = tuple(hosts), default_revision, tuple(revisions)
        found.placement.set_traffic({revision.name: revision.percent for revision in revisions} if len(revisions) > 1 else {})
        self.touch(service)

    def remove_service(self, name: str) -> None:
        """Forget a service: its members' streams end, and activators learn that nothing leads to it any more."""
        service = self._services.pop(name, None)
        if service is None:
            return
        for member in service.members.values():
            member.put(_refusal(f"service {name}: has been removed"))
            member.put(None)
        for activator in self._activators:
            activator.sent.pop(name, None)
            activator.put(pb.RouteResponse(services=[pb.ServiceRoute(map=pb.MapUpdate(service=name, full=True))]))

    def process_exited(self, service: str, pod: str) -> None:
        """Proof that a pod's processes have ended."""
        found = self._services.get(service)
        if found is not None:
            for name, member in found.placement.members.items():
                if member.pod == pod:
                    found.placement.gone(name)
            self.touch(service)

    async def start(self, host: str, port: int) -> int:
        """Serve; returns the bound port."""
        join: Any = grpc.stream_stream_rpc_method_handler(self._join, pb.JoinRequest.FromString, pb.JoinResponse.SerializeToString)
        route: Any = grpc.stream_stream_rpc_method_handler(self._route, pb.RouteRequest.FromString, pb.RouteResponse.SerializeToString)
        handler = grpc.method_handlers_generic_handler("cloudstate_knative.v1.CoordinationService", {"Join": join, "Route": route})
        self._server = grpc.aio.server(handlers=[handler], options=[("grpc.so_reuseport", 0)])
        bound = self._server.add_insecure_port(f"{host}:{port}")
        await self._server.start()
        return bound

    async def stop(self) -> None:
        """Decide nothing more and end every stream."""
        for service in self._services.values():
            if service.step is not None:
                service.step.cancel()
        if self._server is not None:
            await self._server.stop(0.2)

    async def run(self) -> None:
        """Decide, keep and push until cancelled."""
        loop = asyncio.get_running_loop()
        next_look = loop.time()
        while True:
            self._wake.clear()
            names = list(self._touched)
            if loop.time() >= next_look:
                # All that was touched, and every service that time alone may change.
                names += [name for name, service in self._services.items() if name not in self._touched and service.changes_with_time]
                next_look = loop.time() + TICK
            self._touched.clear()
            for name in names:
                self._begin_step(name)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(next_look):
                    await self._wake.wait()

    def touch(self, service: str) -> None:
        """Something happened to a service: decide now."""
        self._touched[service] = None
        self._wake.set()

    def _begin_step(self, name: str) -> None:
        """Decide for one service beside the others: keeping its map may take a while."""
        service = self._services.get(name)
        if service is None:
            return
        if service.step is not None and not service.step.done():
            self._touched[name] = None
            return
        service.step = asyncio.create_task(self._step(name, service))
        service.step.add_done_callback(lambda _: self._wake.set() if name in self._touched else None)

    async def _step(self, name: str, service: _Service) -> None:
        """Decide, keep and push for one service; a failure is logged and tried again at the next look."""
        if self._services.get(name) is not service:
            return
        try:
            service.placement.tick(self._clock())
            decided = service.placement.map
            if self._persist is not None and decided.shard_count and decided.generation > service.kept.generation:
                await self._persist(decided)
            service.kept = decided
            if self._services.get(name) is service:
                self._push(service)
        except Exception:
            log.exception("placement of %s failed", name)

    # Proxies ------------------------------------------------------------------------------------------------------------

    async def _join(self, requests: AsyncIterator[pb.JoinRequest], context: Any) -> AsyncIterator[pb.JoinResponse]:
        first = await anext(aiter(requests), None)
        if first is None or not first.HasField("hello"):
            yield _refusal("the first message of Join must be `hello`")
            return
        hello = first.hello
        service = self._services.get(hello.service)
        reason = f"service {hello.service}: is not known here" if service is None else service.placement.hello(self._clock(), hello)
        if reason or service is None:
            yield _refusal(reason)
            return
        peer, name = _Peer(), hello.member.member_id
        service.members[name] = peer
        self.touch(hello.service)
        reader = asyncio.create_task(self._beats(requests, service, name, peer))
        try:
            while (message := await peer.queue.get()) is not None:
                yield message
        finally:
            reader.cancel()
            if service.members.get(name) is peer:
                del service.members[name]

    async def _beats(self, requests: AsyncIterator[pb.JoinRequest], service: _Service, name: str, peer: _Peer) -> None:
        """Take a member's beats; one that is no member any more is disconnected, so that it introduces itself anew."""
        try:
            async for request in requests:
                if name not in service.placement.states:
                    return
                service.placement.heartbeat(self._clock(), name, request.heartbeat)
                self.touch(service.kept.service)
                self._update_member(service, peer)
                acknowledgement = pb.Acknowledgement(sent_at=request.heartbeat.sent_at, generation=service.kept.generation)
                peer.put(pb.JoinResponse(acknowledgement=acknowledgement))
        finally:
            peer.put(None)

    # Activators ---------------------------------------------------------------------------------------------------------

    async def _route(self, requests: AsyncIterator[pb.RouteRequest], context: Any) -> AsyncIterator[pb.RouteResponse]:
        peer = _Peer()
        self._activators.add(peer)
        peer.put(pb.RouteResponse(services=[self._route_of(service, peer) for service in self._services.values()]))
        reader = asyncio.create_task(self._statistics(requests, peer))
        try:
            while (message := await peer.queue.get()) is not None:
                yield message
        finally:
            reader.cancel()
            self._activators.discard(peer)

    async def _statistics(self, requests: AsyncIterator[pb.RouteRequest], peer: _Peer) -> None:
        try:
            async for request in requests:
                self.on_heard(request.activator_id)
                for stats in request.stats:
                    self.on_stats(request.activator_id, stats)
                peer.put(pb.RouteResponse())
        finally:
            peer.put(None)

    # Pushing ------------------------------------------------------------------------------------------------------------

    def _push(self, service: _Service) -> None:
        for member in service.members.values():
            self._update_member(service, member)
        route = self._describe(service).SerializeToString(deterministic=True)
        changed, service.route = route != service.route, route
        if changed:
            self.on_members(service.kept.service)
        for activator in self._activators:
            if changed or activator.sent.get(service.kept.service, -1) < service.kept.generation:
                activator.put(pb.RouteResponse(services=[self._route_of(service, activator)]))

    def _update_member(self, service: _Service, peer: _Peer) -> None:
        """Send a member what it does not have yet; who has left without a shard changes the members and not the map."""
        if peer.sent.get(service.kept.service, -1) < service.kept.generation or peer.members != service.placement.members.keys():
            peer.put(pb.JoinResponse(map=self._update(service, peer)))

    def _update(self, service: _Service, peer: _Peer) -> pb.MapUpdate:
        """What a peer does not have yet of a map; everything at first."""
        kept = service.kept
        known = peer.sent.get(kept.service, -1)
        peer.sent[kept.service], peer.members = kept.generation, frozenset(service.placement.members)
        changed = enumerate(kept.entries) if known < 0 else kept.since(known)
        entries = [
            pb.ShardEntry(shard=s, owner=e.owner, next=e.next, since=e.since, force_after_ms=e.force_after_ms) for s, e in changed
        ]
        return pb.MapUpdate(
            service=kept.service,
            shard_count=kept.shard_count,
            generation=kept.generation,
            entries=entries,
            members=service.placement.members.values(),
            full=known < 0,
        )

    def _route_of(self, service: _Service, peer: _Peer) -> pb.ServiceRoute:
        route = self._describe(service)
        route.map.CopyFrom(self._update(service, peer))
        return route

    def _describe(self, service: _Service) -> pb.ServiceRoute:
        """A service's route without its shards."""
        revisions = [
            pb.RevisionRoute(
                revision=revision.name,
                container_concurrency=revision.container_concurrency,
                timeout_seconds=revision.timeout_seconds,
                ready_members=service.placement.ready_members(revision.name),
            )
            for revision in service.revisions
        ]
        return pb.ServiceRoute(
            map=pb.MapUpdate(service=service.kept.service),
            methods=service.placement.methods,
            revisions=revisions,
            hosts=service.hosts,
            default_revision=service.default_revision,
            plain=isinstance(service.placement, PlainMembers),
        )


def _refusal(reason: str) -> pb.JoinResponse:
    return pb.JoinResponse(refusal=pb.Refusal(reason=reason))
