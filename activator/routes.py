"""Where a call goes: header or host → revision, path → method, message → entity key → shard → owner (pure).

A service without a proxy ("plain") has no methods and no shards: any ready pod of the revision takes its calls, whatever they are. A table
is fed with the leader's messages and answers from memory; it keeps what it knows while the leader is away.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
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
class Revision:
    """One revision: its ready members, its limit of calls per pod (0 = none), and the seconds a call may take (0 = unknown)."""

    ready: tuple[str, ...] = ()
    concurrency: int = 0
    timeout: int = 0


@dataclass(frozen=True, slots=True)
class Destination:
    """A member to send a call to; `pinned`: only this one may take it."""

    member: str
    address: str
    pinned: bool


@dataclass(frozen=True, slots=True)
class Hold:
    """Nobody can take the call yet; it waits for the next change."""


@dataclass(frozen=True, slots=True)
class Peek:
    """The entity's key is in the call's first message, which is not here yet."""


@dataclass(frozen=True, slots=True)
class Reject:
    """The call cannot be routed at all."""

    reason: str
    unimplemented: bool = False


Decision = Destination | Hold | Peek | Reject
Load = Callable[[str], int]
"""Calls in flight or waiting at a member."""
NO_REVISION = Revision()


@dataclass(slots=True)
class Service:
    """One service as this activator knows it."""

    name: str
    generation: int = -1
    entries: list[Entry] = field(default_factory=list)
    members: dict[str, pb.Member] = field(default_factory=dict)
    methods: dict[str, Method] = field(default_factory=dict)
    revisions: dict[str, Revision] = field(default_factory=dict)
    hosts: tuple[str, ...] = ()
    revision: str = ""
    """The default revision."""
    plain: bool = False
    """Without a proxy."""

    def update(self, route: pb.ServiceRoute) -> None:
        """Take over a message of the leader; entries of an older generation are left out. The method table, once known, is kept."""
        update = route.map
        if update.full or len(self.entries) != update.shard_count:
            self.entries = [Entry()] * update.shard_count
        if update.generation >= self.generation or update.full:
            for e in update.entries:
                if e.shard < len(self.entries):
                    self.entries[e.shard] = Entry(e.owner, e.next, e.since, e.force_after_ms)
            self.generation = update.generation
        self.members = {member.member_id: member for member in update.members}
        if route.methods:
            self.methods = {m.path: _method(m) for m in route.methods}
        self.hosts, self.revision, self.plain = tuple(route.hosts), route.default_revision, route.plain
        self.revisions = {r.revision: Revision(tuple(r.ready_members), r.container_concurrency, r.timeout_seconds) for r in route.revisions}

    @property
    def removed(self) -> bool:
        """Nothing leads to it any more."""
        return not self.revisions and not self.revision

    def decide(self, path: str, message: bytes | None, revision: str, load: Load, avoid: Collection[str] = ()) -> Decision:
        """Where a gRPC call goes now; `message` None = not seen yet, `avoid` = members that have just refused it.

        MalformedMessage when its message does not parse.
        """
        if self.plain or self.removed:
            return self.any_pod(revision, load, avoid)
        if not self.methods or not self.entries:
            return Hold()
        method = self.methods.get(path)
        if method is None and not path.startswith(ANY_POD):
            return Reject(f"{path}: is not a method of {self.name}", unimplemented=True)
        if method is None or not method.key_fields:
            return self.any_pod(revision, load, avoid)
        if message is None:
            return Peek()
        key = key_of(message, method.key_fields)
        if not key:
            return Reject(f"{path}: the request's entity key must not be empty: it names the entity")
        owner = self.entries[shard_of(method.persistence_id, key, len(self.entries))].owner
        return self._destination(owner, pinned=True) if owner not in avoid else Hold()

    def any_pod(self, revision: str, load: Load, avoid: Collection[str] = ()) -> Decision:
        """The ready pod of a revision with the fewest calls."""
        if self.removed:
            return Reject(f"{self.name}: has been removed", unimplemented=True)
        ready = [member for member in self.revisions.get(revision, NO_REVISION).ready if member not in avoid]
        return self._destination(min(ready, key=load), pinned=False) if ready else Hold()

    def at_zero(self, revision: str) -> bool:
        """Nobody is ready: of the revision, or, where an entity may live at any revision, of the service."""
        if self.plain:
            return not self.revisions.get(revision, NO_REVISION).ready
        return not any(found.ready for found in self.revisions.values())

    def limit(self, member: str) -> int:
        """Calls that a member may have in flight; 0 = any number."""
        found = self.members.get(member)
        return self.revisions.get(found.revision, NO_REVISION).concurrency if found is not None else 0

    def _destination(self, member: str, pinned: bool) -> Decision:
        found = self.members.get(member)
        return Destination(member, found.data_address, pinned) if found is not None else Hold()


def _method(method: pb.Method) -> Method:
    fields = () if method.stateless else tuple((tuple(f.numbers), f.type) for f in method.key_fields)
    return Method(method.persistence_id, fields)


def host_of(authority: str) -> str:
    """The host of an authority in lower case, without port; brackets of an IPv6 address stay."""
    host, colon, port = authority.rpartition(":")
    return (host if colon and port.isdecimal() and not authority.endswith("]") else authority).lower()


def revision_of(host: str) -> tuple[str, str]:
    """Namespace and name of the Kubernetes Service that a host names: `<name>.<namespace>.svc`, with or without the cluster's domain."""
    name, namespace, kind, *_ = [*host.split("."), "", "", ""]
    return (namespace, name) if kind == "svc" else ("", "")


class RouteTable:
    """All services."""

    def __init__(self) -> None:
        self.services: dict[str, Service] = {}
        self._by_host: dict[str, Service] = {}
        self._by_revision: dict[tuple[str, str], Service] = {}
        self.told = False
        """True once a leader has told routes."""

    def apply(self, routes: Iterable[pb.ServiceRoute]) -> list[Service]:
        """Take over the leader's message; the services it concerned."""
        touched = []
        for route in routes:
            self.told = True
            service = self.services.setdefault(route.map.service, Service(route.map.service))
            service.update(route)
            touched.append(service)
        self._index()
        return touched

    def forget(self, name: str) -> None:
        """A service is no more."""
        del self.services[name]
        self._index()

    def _index(self) -> None:
        services = self.services.values()
        self._by_host = {host.lower(): service for service in services for host in service.hosts}
        self._by_revision = {(s.name.partition("/")[0], r): s for s in services for r in (s.revision, *s.revisions) if r}

    def find(self, authority: str, namespace: str, revision: str) -> tuple[Service, str] | None:
        """Service and revision: by Knative's headers, else by host (a service's, or the cluster's name of a revision), else the only service
        there is."""
        if not revision:
            host = host_of(authority)
            if (found := self._by_host.get(host)) is not None:
                return found, found.revision
            namespace, revision = revision_of(host)
            if not revision:
                return self._only()
        found = self._by_revision.get((namespace, revision))
        return (found, revision) if found is not None else None

    def _only(self) -> tuple[Service, str] | None:
        living = [service for service in self.services.values() if not service.removed]
        return (living[0], living[0].revision) if len(living) == 1 else None

    @property
    def addresses(self) -> set[str]:
        """Where some member takes calls."""
        return {member.data_address for service in self.services.values() for member in service.members.values()}
