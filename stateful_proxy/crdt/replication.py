"""Tells the other proxies of a service what is new in the journal, and who of them has it.

Each member has an outbox with the newest version of each key; what fails is sent again as a notice, by which the member reads the journal. A
member that cannot be reached for long is given up: it reads its keys again by itself, from time to time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from cloudstate_core.journal.api import EntityKey
from cloudstate_core.pb.cloudstate.crdt_pb2 import ALL, LOCAL, CrdtWriteConsistency
from cloudstate_core.pb.cloudstate_knative.v1 import peer_pb2
from cloudstate_core.transport import api
from cloudstate_core.transport.api import Event, Status, Transport
from stateful_proxy.peers import Peers

REPLICATE = "/cloudstate_knative.v1.PeerService/Replicate"
Change = peer_pb2.Replication.Change
CALL_LIMIT = 3.0
"""Seconds that a member has to acknowledge."""
MAX_IN_FLIGHT = 8
"""Requests to one member that are not acknowledged yet."""
MAX_INLINE = 32 * 1024
"""Bytes; a larger record is read from the journal by those who hold its key."""
MAX_KEYS = 10_000
"""Keys in one outbox; what is more is left to the member's own reading."""
BATCH_BYTES = 1024 * 1024
RETRY_FIRST, RETRY_LAST = 0.1, 2.0
GIVE_UP = 8
"""Failures in a row after which an outbox is dropped."""


@dataclass(slots=True)
class _Outbox:
    """What one member is to hear."""

    changes: dict[EntityKey, Change] = field(default_factory=dict)
    in_flight: int = 0
    failures: int = 0
    paused: bool = False


@dataclass(slots=True, eq=False)
class _Wait:
    """An update that must be with others before its caller is answered."""

    key: EntityKey
    version: int
    everybody: bool
    then: Callable[[], None]
    acknowledged: set[str] = field(default_factory=set)


class Replication:
    """Outboxes and receipts. `peers` is None in a standalone proxy, which has nobody to tell."""

    def __init__(self, transport: Transport, peers: Peers | None, member: str) -> None:
        self._transport, self._peers, self.member = transport, peers, member
        self._outboxes: dict[str, _Outbox] = {}
        self._sent: dict[int, tuple[str, _Outbox, dict[EntityKey, int]]] = {}
        self._waits: dict[EntityKey, list[_Wait]] = {}
        self._flush_wanted = False
        self.pushed = self.failed = 0

    def living(self) -> frozenset[str]:
        """Members that are up, with this one."""
        others = self._peers.others if self._peers is not None else frozenset[str]()
        return others | {self.member}

    def publish(self, key: EntityKey, version: int, record: bytes | None) -> None:
        """The journal has this now; None: the key is deleted."""
        if self._peers is None or not self._peers.others:
            return
        change = Change(persistence_id=key.persistence_id, entity_id=key.entity_id, version=version)
        if record is None:
            change.deleted = True
        elif len(record) <= MAX_INLINE:
            change.record = record
        for member in sorted(self._peers.others):
            self._put(member, key, change)

    def _put(self, member: str, key: EntityKey, change: Change) -> None:
        outbox = self._outboxes.setdefault(member, _Outbox())
        present = outbox.changes.get(key)
        if (present is None or present.version < change.version) and len(outbox.changes) < MAX_KEYS:
            outbox.changes[key] = change
            self._flush_soon()

    def _flush_soon(self) -> None:
        if not self._flush_wanted:
            self._flush_wanted = True
            self._transport.after(0.0, self._flush)

    def _flush(self) -> None:
        self._flush_wanted = False
        for member, outbox in self._outboxes.items():
            while outbox.changes and outbox.in_flight < MAX_IN_FLIGHT and not outbox.paused:
                self._send(member, outbox)

    def _send(self, member: str, outbox: _Outbox) -> None:
        upstream = self._peers.upstream_of(member) if self._peers is not None else None
        if upstream is None:
            outbox.changes.clear()
            return
        request, versions, size = peer_pb2.Replication(), dict[EntityKey, int](), 0
        for key in list(outbox.changes):
            change = outbox.changes.pop(key)
            request.changes.append(change)
            versions[key] = change.version
            size += len(change.record)
            if size >= BATCH_BYTES:
                break
        outbox.in_flight += 1
        self.pushed += len(versions)
        stream = self._transport.open(upstream, REPLICATE, timeout=CALL_LIMIT)
        self._sent[stream] = member, outbox, versions
        self._transport.send(stream, request.SerializeToString())
        self._transport.half_close(stream)

    def on_event(self, event: Event) -> bool:
        """Handle an event of a request to a member; False when it belongs to another."""
        kind, stream, _, detail = event
        sent = self._sent.get(stream)
        if sent is None:
            return False
        if kind == api.STREAM_CLOSED:
            del self._sent[stream]
            member, outbox, versions = sent
            outbox.in_flight -= 1  # of that one: a member that was away for a moment has another one now
            if detail[0] == Status.OK:
                self._received(member, outbox, versions)
            elif self._outboxes.get(member) is outbox:
                self._failed(member, outbox, versions)
        return True

    def _received(self, member: str, outbox: _Outbox, versions: dict[EntityKey, int]) -> None:
        outbox.failures = 0
        for key, version in versions.items():
            for wait in self._waits.get(key, ()):
                if wait.version <= version:
                    wait.acknowledged.add(member)
        self._settle(versions)
        if outbox.changes:
            self._flush_soon()

    def _failed(self, member: str, outbox: _Outbox, versions: dict[EntityKey, int]) -> None:
        """Send it again, as notices: meanwhile there may be newer versions."""
        self.failed += 1
        if not outbox.paused:  # else it failed together with one that was on its way at the same time
            outbox.failures += 1
        if outbox.failures >= GIVE_UP:
            outbox.changes.clear()
            return
        for key, version in versions.items():
            self._put(member, key, Change(persistence_id=key.persistence_id, entity_id=key.entity_id, version=version))
        if not outbox.paused:
            outbox.paused = True
            self._transport.after(min(RETRY_LAST, RETRY_FIRST * 2 ** (outbox.failures - 1)), lambda: self._resume(outbox))

    def _resume(self, outbox: _Outbox) -> None:
        outbox.paused = False
        self._flush_soon()

    # Write consistency --------------------------------------------------------------------------------------------------

    def when_held(self, key: EntityKey, version: int, consistency: CrdtWriteConsistency, then: Callable[[], None]) -> Callable[[], None]:
        """`then`, once so many members have this version of a key as was asked for. Call what is returned to stop waiting."""
        if consistency == LOCAL or self._peers is None:
            then()
            return lambda: None
        wait = _Wait(key, version, consistency == ALL, then)
        self._waits.setdefault(key, []).append(wait)
        for member in sorted(self._peers.others):
            self._put(member, key, Change(persistence_id=key.persistence_id, entity_id=key.entity_id, version=version))
        self._settle([key])
        return lambda: self._forget(wait)

    def _settle(self, keys: Iterable[EntityKey]) -> None:
        up = self.living()
        for key in list(keys):
            for wait in list(self._waits.get(key, ())):
                held = len((wait.acknowledged | {self.member}) & up)
                if held == len(up) or (not wait.everybody and 2 * held > len(up)):
                    self._forget(wait)
                    wait.then()

    def _forget(self, wait: _Wait) -> None:
        waits = self._waits.get(wait.key, [])
        if wait in waits:
            waits.remove(wait)
            if not waits:
                del self._waits[wait.key]

    def members_changed(self) -> None:
        """Members have come or gone: who is gone is waited for no longer."""
        up = self.living()
        self._outboxes = {member: outbox for member, outbox in self._outboxes.items() if member in up}
        for key, waits in self._waits.items():
            for member in up - {self.member}:
                newest = max(wait.version for wait in waits)
                self._put(member, key, Change(persistence_id=key.persistence_id, entity_id=key.entity_id, version=newest))
        self._settle(self._waits)
