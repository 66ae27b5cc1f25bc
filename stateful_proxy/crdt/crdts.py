"""All replicated entities that this proxy has in memory: each key's replica, its stream to the user function, and commands that wait for it.

Any proxy serves any key; there is no owner. Guarantees: a command is executed on the value as the journal has it or newer; a key leaves memory
only when nothing is open and everything is stored; the number of commands at one key is bounded.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from cloudstate_core.hashing import shard_of
from cloudstate_core.journal.api import EntityKey
from cloudstate_core.pb.cloudstate_knative.v1 import peer_pb2
from cloudstate_core.transport import api
from cloudstate_core.transport.api import Event, Status
from stateful_proxy.crdt import wire
from stateful_proxy.crdt.entity import ReplicatedEntity
from stateful_proxy.crdt.keeper import Keeper, Ports
from stateful_proxy.crdt.replication import REPLICATE
from stateful_proxy.crdt.surroundings import Command, Surroundings
from stateful_proxy.invocation import Invocation
from stateful_proxy.journal_batch import JournalBatch

REREAD = 100
"""Keys that are read again with each tick, in turn: what was told by nobody is found so."""


@dataclass(frozen=True, slots=True)
class CrdtLimits:
    """Bounds of memory and time."""

    commands: int = 1_000
    """Commands of one key, at the function or before it."""
    idle: float = 30.0
    """Seconds without a command after which a key leaves memory."""


class Crdts:
    """Executes commands on replicated entities. Everything runs on the transport's callback thread."""

    def __init__(self, surroundings: Surroundings, batch: JournalBatch, shard_count: int, limits: CrdtLimits) -> None:
        self._around, self._shard_count, self._limits = surroundings, shard_count, limits
        self._ports = Ports(batch.ask, surroundings.after, surroundings.replication.publish, surroundings.replication.living)
        self._entities: dict[EntityKey, ReplicatedEntity] = {}
        self._by_stream: dict[int, ReplicatedEntity] = {}
        self._by_call: dict[int, tuple[ReplicatedEntity, Command]] = {}
        self._turns: deque[EntityKey] = deque()
        self._living = surroundings.replication.living()
        self._left: Callable[[], None] | None = None
        self.leaving = False
        self.commands = self.passivated = 0

    @property
    def active(self) -> int:
        """Keys in memory."""
        return len(self._entities)

    @property
    def pushed(self) -> int:
        """Keys told to other proxies."""
        return self._around.replication.pushed

    def concurrency(self, now: float) -> float:
        """Commands at the function, on average since this was asked last."""
        return self._around.in_flight.average(now)

    # Commands -----------------------------------------------------------------------------------------------------------

    def command(self, call: int, invocation: Invocation, entity_id: str, metadata: bytes = b"") -> None:
        """Execute one call on a key; it is answered through `Callers`. `metadata`: what of the caller's the function gets, encoded."""
        method = invocation.method
        if self._around.absence.problem:
            self._around.absence.hold(call, method.path, lambda: self.command(call, invocation, entity_id, metadata))
            return
        self.commands += 1
        if self.leaving:
            text = f"{method.path}: not executed: this proxy stops"
            self._around.callers.finish(call, Status.UNAVAILABLE, text, [(api.REFUSED_HEADER, b"draining")])
            return
        key = EntityKey(method.persistence_id, entity_id)
        entity = self._entities.get(key)
        if entity is not None and entity.commands >= self._limits.commands:
            text = f"{method.service}: {self._limits.commands} commands are at this entity, no more are taken"
            self._around.callers.finish(call, Status.RESOURCE_EXHAUSTED, text)
            return
        command = Command(call, method, invocation.payload, invocation.chain, invocation.command_id, metadata)
        if entity is None:
            entity = self._create(key, method.service, method.passivation)
        self._by_call[call] = entity, command
        entity.take(command)

    def _create(self, key: EntityKey, service: str, passivation: float | None) -> ReplicatedEntity:
        shard = shard_of(key.persistence_id, key.entity_id, self._shard_count)
        entity = ReplicatedEntity(self, self._around, Keeper(key, shard, self._around.replication.member, self._ports), service)
        entity.idle_limit = passivation or self._limits.idle
        self._entities[key] = entity
        entity.keeper.start(entity)
        return entity

    def on_event(self, event: Event) -> bool:
        """Handle an event of a stream; False when it concerns no replicated entity."""
        kind, number, data, detail = event
        if kind == api.STREAM_MESSAGE:
            entity = self._by_stream.get(number)
            if entity is not None and entity.session is not None:
                entity.used = time.monotonic()
                entity.session.on_message(data)
                return True
        elif kind == api.STREAM_CLOSED:
            entity = self._by_stream.pop(number, None)
            if entity is not None and entity.session is not None:
                entity.session.on_closed(detail)
                return True
        return self._around.replication.on_event(event)

    def cancelled(self, call: int) -> bool:
        """The caller of a command is gone; False when it is none of these."""
        entity, command = self._by_call.pop(call, (None, None))
        if entity is not None and command is not None:
            entity.cancelled(command)
        return entity is not None

    # Other proxies ------------------------------------------------------------------------------------------------------

    def received(self, call: int, data: bytes) -> None:
        """Another proxy tells what is new in the journal; the receipt goes out once it is here."""
        try:
            changes = peer_pb2.Replication.FromString(data).changes
            news = [(change, wire.decoded(change.record) if change.HasField("record") else None) for change in changes]
        except (DecodeError, wire.Unreadable) as error:
            self._around.transport.finish(call, Status.INVALID_ARGUMENT, f"{REPLICATE}: the request cannot be read: {error}")
            return
        unread = len(news) + 1

        def one_read() -> None:
            nonlocal unread
            unread -= 1
            if not unread:
                self._around.transport.reply(call, b"")

        for change, record in news:
            entity = self._entities.get(EntityKey(change.persistence_id, change.entity_id))
            if entity is None:
                one_read()
            elif entity.keeper.replica.version >= 0 and (record is not None or change.deleted):
                entity.keeper.hear(change.version, record)
                one_read()
            else:
                entity.keeper.hear_of(change.version, one_read)
        one_read()

    def members_changed(self) -> None:
        """Proxies of this service may have come or gone."""
        if self._around.replication.living() == self._living:
            return
        self._living = self._around.replication.living()
        self._around.replication.members_changed()
        for entity in list(self._entities.values()):
            entity.keeper.members_changed()
            if entity.session is not None:
                entity.session.turn(members_changed=True)

    # Time ---------------------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Let idle keys leave memory, give up commands that cannot begin, and read some keys again."""
        for entity in list(self._entities.values()):
            entity.tick(now)
        if self._around.replication.living() == {self._around.replication.member}:
            return
        for _ in range(min(REREAD, len(self._turns) or len(self._entities))):
            if not self._turns:
                self._turns.extend(self._entities)
            if (present := self._entities.get(self._turns.popleft())) is not None and present.session is not None:
                present.keeper.read()

    def leave(self, done: Callable[[], None]) -> None:
        """The proxy stops: no more commands; open calls end in good order; `done` when everything is stored."""
        self.leaving, self._left = True, done
        for entity in list(self._entities.values()):
            entity.leave()
        self._look_left()

    def _look_left(self) -> None:
        if self._left is not None and not self._entities:
            done, self._left = self._left, None
            done()

    # For the entities ---------------------------------------------------------------------------------------------------

    def opened(self, entity: ReplicatedEntity, stream: int) -> None:
        """An entity has a stream."""
        self._by_stream[stream] = entity

    def closed(self, stream: int) -> None:
        """An entity has lost its stream."""
        self._by_stream.pop(stream, None)

    def answered(self, call: int) -> None:
        """Nobody waits for this call any more."""
        self._by_call.pop(call, None)

    def forget(self, entity: ReplicatedEntity) -> None:
        """An entity leaves memory. Commands that wait for it go to a new one."""
        if self._entities.get(entity.keeper.key) is entity:
            del self._entities[entity.keeper.key]
            self.passivated += 1
        waiting, entity.waiting = entity.waiting, deque()
        if waiting:
            successor = self._create(entity.keeper.key, entity.service, None)
            successor.idle_limit = entity.idle_limit
            for command in waiting:
                self._by_call[command.call] = successor, command
                successor.take(command)
        self._look_left()
