"""Where a call goes: host or header → service, path → method, message → entity key → shard → owner (pure).

A table is fed with the leader's messages and answers from memory; it keeps what it knows while the leader is away.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from cloudstate_core.entity_key import KeyField, key_of
from cloudstate_core.hashing import shard_of
from cloudstate_core.pb.cloudstate_knative.v1 import coordination_pb2 as pb
from cloudstate_core.shard_map import Entry

ANY_POD = ("/grpc.reflection.", "/grpc.health.")
"""Services that every proxy answers itself."""


@dataclass(frozen=True, slots=True)
class Method:
    """How the entity of a command is found; no key fields: any pod will do."""

    persistence_id: str
    key_fields: tuple[KeyField, ...]


@dataclass(frozen=True, slots=True)
class Destination:
    """A member to send a call to."""

    member: str
    address: str


@dataclass(frozen=True, slots=True)
class Hold:
    """Nobody can take the call yet; it waits for the next change."""


@dataclass(frozen=True, slots=True)
class Reject:
    """The call cannot be routed at all."""

    reason: str
    unimplemented: bool = False


Decision = Destination | Hold | Reject


@dataclass(slots=True)
class Service:
    """One service as this activator knows it."""

    name: str
    generation: int = -1
    entries: list[Entry] = field(default_factory=list)
    members: dict[str, pb.Member] = field(default_factory=dict)
    methods: dict[str, Method] = field(default_factory=dict)
    ready: list[str] = field(default_factory=list)
    hosts: tuple[str, ...] = ()
    revision: str = ""
    concurrency: int = 0

    def update(self, route: pb.ServiceRoute) -> None:
        """Take over a message of the leader."""
        update = route.map
        if update.full or len(self.entries) != update.shard_count:
            self.entries = [Entry()] * update.shard_count
        if update.generation >= self.generation or update.full:
            for e in update.entries:
                self.entries[e.shard] = Entry(e.owner, e.next, e.since, e.force_after_ms)
            self.generation = update.generation
        self.members = {member.member_id: member for member in update.members}
        self.methods = {m.path: _method(m) for m in route.methods}
        self.hosts, self.revision = tuple(route.hosts), route.default_revision
        for revision in route.revisions:
            if revision.revision == self.revision:
                self.ready = list(revision.ready_members)
                self.concurrency = revision.container_concurrency

    def decide(self, path: str, message: bytes, in_flight: Mapping[str, int]) -> Decision:
        """Where a gRPC call goes now. MalformedMessage when its message does not parse."""
        if not self.methods or not self.ready:
            return Hold()
        method = self.methods.get(path)
        if method is None and not path.startswith(ANY_POD):
            return Reject(f"{path}: is not a method of {self.name}", unimplemented=True)
        if method is None or not method.key_fields:
            return self.any_pod(in_flight)
        key = key_of(message, method.key_fields)
        if not key:
            return Reject(f"{path}: the request's entity key must not be empty: it names the entity")
        entry = self.entries[shard_of(method.persistence_id, key, len(self.entries))]
        return self._destination(entry.owner)

    def any_pod(self, in_flight: Mapping[str, int]) -> Decision:
        """The ready pod with the fewest calls in flight."""
        if not self.ready:
            return Hold()
        return self._destination(min(self.ready, key=lambda member: in_flight.get(member, 0)))

    def _destination(self, member: str) -> Decision:
        found = self.members.get(member)
        return Destination(member, found.data_address) if found is not None else Hold()


def _method(method: pb.Method) -> Method:
    return Method(method.persistence_id, tuple((tuple(f.numbers), f.type) for f in method.key_fields))


class RouteTable:
    """All services."""

    def __init__(self) -> None:
        self.services: dict[str, Service] = {}
        self._by_host: dict[str, Service] = {}
        self._by_revision: dict[tuple[str, str], Service] = {}

    def apply(self, routes: Iterable[pb.ServiceRoute]) -> list[Service]:
        """Take over the leader's message; the services it concerned."""
        touched = []
        for route in routes:
            service = self.services.setdefault(route.map.service, Service(route.map.service))
            service.update(route)
            touched.append(service)
        self._by_host = {host: service for service in self.services.values() for host in service.hosts}
        self._by_revision = {(s.name.split("/")[0], s.revision): s for s in self.services.values()}
        return touched

    def find(self, host: str, namespace: str, revision: str) -> Service | None:
        """By Knative's headers, else by host, else the only service there is."""
        if revision:
            return self._by_revision.get((namespace, revision))
        found = self._by_host.get(host.partition(":")[0])
        if found is None and len(self.services) == 1:
            return next(iter(self.services.values()))
        return found
