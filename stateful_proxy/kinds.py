"""What the kinds of owned entities do differently: the messages of their streams, and what a reply changes in the journal.

Everything else (mailbox, activation, fencing, ends) is common to them and lives in `entities`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from cloudstate_core.journal.api import Active, Append, Put, Value
from cloudstate_core.pb.cloudstate import event_sourced_pb2, value_entity_pb2
from stateful_proxy.entity import Command, Entity
from stateful_proxy.libraries import Quirks
from stateful_proxy.service import EVENT_SOURCED, VALUE_ENTITY

Reply = event_sourced_pb2.EventSourcedReply | value_entity_pb2.ValueEntityReply


class Kind(Protocol):
    """One kind."""

    handle: str
    """Path of the function's method that serves an entity's stream."""
    noun: str
    """What failures call such an entity."""
    command_tag: bytes
    """Tag of the field of a stream message that carries a command."""

    def parse(self, data: bytes) -> Any:
        """A message of the function: `reply` or `failure`. DecodeError when it is none."""

    def opening(self, entity: Entity, active: Active) -> list[bytes]:
        """The first messages of an entity's stream: it as the journal has it."""

    def ignored(self, reply: Any) -> str:
        """What a reply that changes nothing asks for in vain, for the function to hear; '' for nothing."""

    def change(self, entity: Entity, command: Command, reply: Any, outcome: bytes) -> Append | Put:
        """What a reply that changes something asks of the journal; a duplicate of the command is answered with `outcome`."""

    def steps(self, reply: Any) -> int:
        """By how much the sequence grows with it; 0: it changes nothing that is stored."""


class EventSourced:
    """State is the sum of its events; snapshots shorten the sum."""

    handle, noun, command_tag = "/cloudstate.eventsourced.EventSourced/handle", "entity", b"\x1a"
    parse = staticmethod(event_sourced_pb2.EventSourcedStreamOut.FromString)

    def __init__(self, snapshots: bool = True) -> None:
        """`snapshots`: keep those that the function gives."""
        self._snapshots = snapshots

    def opening(self, entity: Entity, active: Active) -> list[bytes]:
        """Init, with the snapshot if there is one, and every event after it."""
        init = event_sourced_pb2.EventSourcedInit(service_name=entity.service, entity_id=entity.key.entity_id)
        if active.snapshot is not None:
            init.snapshot.snapshot_sequence = active.snapshot_seq
            _fill(init.snapshot.snapshot, active.snapshot)
        messages = [event_sourced_pb2.EventSourcedStreamIn(init=init).SerializeToString()]
        for event in active.tail:
            message = event_sourced_pb2.EventSourcedStreamIn()
            message.event.sequence = event.sequence
            _fill(message.event.payload, event.payload)
            messages.append(message.SerializeToString())
        return messages

    def ignored(self, reply: event_sourced_pb2.EventSourcedReply) -> str:
        """Such a snapshot."""
        return "a snapshot without events is not stored; send it with the last event in it" if reply.HasField("snapshot") else ""

    def steps(self, reply: event_sourced_pb2.EventSourcedReply) -> int:
        """One for each event. A snapshot alone changes nothing: it is legal with events only."""
        return len(reply.events)

    def change(self, entity: Entity, command: Command, reply: event_sourced_pb2.EventSourcedReply, outcome: bytes) -> Append:
        """Append its events, with the snapshot of the state after them."""
        given = self._snapshots and reply.HasField("snapshot")
        snapshot = Value(reply.snapshot.type_url, reply.snapshot.value) if given else None
        # of a copy: to iterate over a repeated field costs an exception at its end
        events = tuple([Value(event.type_url, event.value) for event in reply.events[:]])
        fence = (entity.shard, entity.token, entity.key, entity.binding, entity.seq)
        return Append(*fence, events, snapshot, command.command_id, outcome)


class ValueEntity:
    """State is one value, replaced or deleted as a whole."""

    handle, noun, command_tag = "/cloudstate.valueentity.ValueEntity/handle", "Value entity", b"\x12"
    parse = staticmethod(value_entity_pb2.ValueEntityStreamOut.FromString)

    def opening(self, entity: Entity, active: Active) -> list[bytes]:
        """Init; its `state` is there also when there is no value."""
        init = value_entity_pb2.ValueEntityInit(service_name=entity.service, entity_id=entity.key.entity_id)
        init.state.SetInParent()
        if active.snapshot is not None:
            _fill(init.state.value, active.snapshot)
        return [value_entity_pb2.ValueEntityStreamIn(init=init).SerializeToString()]

    def ignored(self, reply: value_entity_pb2.ValueEntityReply) -> str:
        """Nothing."""
        return ""

    def steps(self, reply: value_entity_pb2.ValueEntityReply) -> int:
        """One version, with an update or a delete."""
        return int(reply.HasField("state_action") and reply.state_action.WhichOneof("action") is not None)

    def change(self, entity: Entity, command: Command, reply: value_entity_pb2.ValueEntityReply, outcome: bytes) -> Put:
        """Put the new value, or none."""
        action, value = reply.state_action, None
        if action.WhichOneof("action") == "update":
            value = Value(action.update.value.type_url, action.update.value.value)
        return Put(entity.shard, entity.token, entity.key, entity.binding, entity.seq, value, command.command_id, outcome)


KINDS: Mapping[str, Kind] = {EVENT_SOURCED: EventSourced(), VALUE_ENTITY: ValueEntity()}


def kinds_of(quirks: Quirks) -> Mapping[str, Kind]:
    """The kinds for a function on a library that has these."""
    return {**KINDS, EVENT_SOURCED: EventSourced(quirks.reads_snapshots)}


def _fill(target: Any, value: Value) -> None:
    target.type_url, target.value = value.type_url, value.data
