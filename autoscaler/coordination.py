"""The leader's gRPC service: proxies join and beat, activators report and learn routes. A thin driver around `ServicePlacement`.

What is pushed was decided and kept before; a new stream gets the whole map first, then only changes. A stream that breaks proves nothing: its
member is suspected when it stays silent. `process_exited` is proof.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio

from autoscaler.placement.service import PlacementSettings, ServicePlacement
from cloudstate_core.pb.cloudstate_knative.v1 import coordination_pb2 as pb

log = logging.getLogger(__name__)

TICK = 0.1
"""Seconds between looks at suspicion and balance; events are decided on at once."""
MAX_QUEUED = 1_000
"""Messages that may wait for one stream; a peer that does not read is disconnected and comes back for the whole map."""


@dataclass(slots=True, eq=False)
class _Peer:
    """One open stream; `sent` = generation of each service's map that it has, -1 for none; the last item None ends the stream."""

    queue: asyncio.Queue[Any] = field(default_factory=lambda: asyncio.Queue(MAX_QUEUED))
    sent: dict[str, int] = field(default_factory=dict)

    def put(self, message: Any) -> None:
        try:
            self.queue.put_nowait(message)
        except asyncio.QueueFull:
            while not self.queue.empty():
                self.queue.get_nowait()
            self.queue.put_nowait(None)


@dataclass(slots=True)
class _Service:
    placement: ServicePlacement
    hosts: Sequence[str]
    revision: str
    container_concurrency: int
    timeout_seconds: int
    route: bytes = b""
    """The last route pushed, without the map: to see whether it changed."""


class CoordinationServer:
    """Serves CoordinationService for some services.

    `on_heard(activator)` is called for each message of an activator, then `on_stats(activator, RevisionStats)` for all that it tells.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._services: dict[str, _Service] = {}
        self._members: dict[str, dict[str, _Peer]] = {}
        self._activators: set[_Peer] = set()
        self._wake = asyncio.Event()
        self._server: grpc.aio.Server | None = None
        self.on_stats: Callable[[str, pb.RevisionStats], None] = lambda activator, stats: None
        self.on_heard: Callable[[str], None] = lambda activator: None

    def add_service(
        self,
        name: str,
        shard_count: int,
        hosts: Sequence[str],
        default_revision: str,
        container_concurrency: int = 0,
        timeout_seconds: int = 300,
        settings: PlacementSettings | None = None,
        generation: int | None = None,
    ) -> ServicePlacement:
        """Take a service in; its placement.

        `generation`: where the map begins, above that of any earlier leader; the wall clock's milliseconds unless told.
        """
        if generation is None:
            generation = time.time_ns() // 1_000_000
        placement = ServicePlacement(name, shard_count, settings, generation)
        self._services[name] = _Service(placement, tuple(hosts), default_revision, container_concurrency, timeout_seconds)
        self._members[name] = {}
        return placement

    def process_exited(self, service: str, pod: str) -> None:
        """Proof that a pod's processes have ended."""
        placement = self._services[service].placement
        for name, member in placement.members.items():
            if member.pod == pod:
                placement.gone(name)
        self._wake.set()

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
        """End every stream."""
        if self._server is not None:
            await self._server.stop(0.2)

    async def run(self) -> None:
        """Decide and push until cancelled."""
        while True:
            self._wake.clear()
            for service in self._services.values():
                try:
                    service.placement.tick(self._clock())
                    self._push(service)
                except Exception:
                    log.exception("placement of %s failed", service.placement.service)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), TICK)

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
        self._members[hello.service][name] = peer
        reader = asyncio.create_task(self._beats(requests, service.placement, name, peer))
        try:
            while (message := await peer.queue.get()) is not None:
                yield message
        finally:
            reader.cancel()
            if self._members[hello.service].get(name) is peer:
                del self._members[hello.service][name]

    async def _beats(self, requests: AsyncIterator[pb.JoinRequest], placement: ServicePlacement, name: str, peer: _Peer) -> None:
        try:
            async for request in requests:
                if name not in placement.states:
                    return
                placement.heartbeat(self._clock(), name, request.heartbeat)
                self._wake.set()
                acknowledgement = pb.Acknowledgement(sent_at=request.heartbeat.sent_at, generation=placement.map.generation)
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
        finally:
            peer.put(None)

    # Pushing ------------------------------------------------------------------------------------------------------------

    def _push(self, service: _Service) -> None:
        placement = service.placement
        for peer in self._members[placement.service].values():
            if peer.sent.get(placement.service, -1) < placement.map.generation:
                peer.put(pb.JoinResponse(map=self._update(placement, peer)))
        route = self._describe(service).SerializeToString(deterministic=True)
        changed = route != service.route
        service.route = route
        for peer in self._activators:
            if changed or peer.sent.get(placement.service, -1) < placement.map.generation:
                peer.put(pb.RouteResponse(services=[self._route_of(service, peer)]))

    def _update(self, placement: ServicePlacement, peer: _Peer) -> pb.MapUpdate:
        """What a peer does not have yet of a map; everything at first."""
        known = peer.sent.get(placement.service, -1)
        peer.sent[placement.service] = placement.map.generation
        changed = enumerate(placement.map.entries) if known < 0 else placement.map.since(known)
        entries = [
            pb.ShardEntry(shard=s, owner=e.owner, next=e.next, since=e.since, force_after_ms=e.force_after_ms) for s, e in changed
        ]
        return pb.MapUpdate(
            service=placement.service,
            shard_count=placement.shard_count,
            generation=placement.map.generation,
            entries=entries,
            members=placement.members.values(),
            full=known < 0,
        )

    def _route_of(self, service: _Service, peer: _Peer) -> pb.ServiceRoute:
        route = self._describe(service)
        route.map.CopyFrom(self._update(service.placement, peer))
        return route

    def _describe(self, service: _Service) -> pb.ServiceRoute:
        """A service's route without its shards."""
        placement = service.placement
        revision = pb.RevisionRoute(
            revision=service.revision,
            container_concurrency=service.container_concurrency,
            timeout_seconds=service.timeout_seconds,
            ready_members=placement.ready_members(service.revision),
        )
        return pb.ServiceRoute(
            map=pb.MapUpdate(service=placement.service),
            methods=placement.methods,
            revisions=[revision],
            hosts=service.hosts,
            default_revision=service.revision,
        )


def _refusal(reason: str) -> pb.JoinResponse:
    return pb.JoinResponse(refusal=pb.Refusal(reason=reason))
