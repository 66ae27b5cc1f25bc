"""Messages of the protocol in one line each, for tests that say exactly what the proxy sends and what the function answers."""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf import any_pb2
from google.protobuf.message import Message

from cloudstate_core.pb.cloudstate import action_pb2, crdt_pb2, entity_pb2, event_sourced_pb2, value_entity_pb2

GOOGLE = "type.googleapis.com/"
In = event_sourced_pb2.EventSourcedStreamIn
Out = event_sourced_pb2.EventSourcedStreamOut
Target = tuple[str, str]
"""A service and one of its methods."""


def packed(message: Message) -> any_pb2.Any:
    """A message as a value of the protocol."""
    return any_pb2.Any(type_url=GOOGLE + message.DESCRIPTOR.full_name, value=message.SerializeToString())


def reply(message: Message) -> entity_pb2.ClientAction:
    """An answer for the caller."""
    return entity_pb2.ClientAction(reply=entity_pb2.Reply(payload=packed(message)))


def forward(target: Target, message: Message) -> entity_pb2.ClientAction:
    """The answer comes from another method."""
    return entity_pb2.ClientAction(forward=entity_pb2.Forward(service_name=target[0], command_name=target[1], payload=packed(message)))


def failure(command: int, text: str, restart: bool = False) -> entity_pb2.ClientAction:
    """A deliberate failure."""
    return entity_pb2.ClientAction(failure=entity_pb2.Failure(command_id=command, description=text, restart=restart))


def effect(target: Target, message: Message, synchronous: bool = False) -> entity_pb2.SideEffect:
    """A further command."""
    return entity_pb2.SideEffect(service_name=target[0], command_name=target[1], payload=packed(message), synchronous=synchronous)


def command(entity: str, number: int, name: str, message: Message, streamed: bool = False) -> entity_pb2.Command:
    """A command as entities get it: without metadata."""
    return entity_pb2.Command(entity_id=entity, id=number, name=name, payload=packed(message), streamed=streamed)


class EventSourced:
    """Messages on the stream of an event sourced entity."""

    @staticmethod
    def init(service: str, entity: str, snapshot: Message | None = None, at: int = 0) -> In:
        """The first message; with the snapshot that is stored, and the number of the last event in it."""
        made = In(init=event_sourced_pb2.EventSourcedInit(service_name=service, entity_id=entity))
        if snapshot is not None:
            made.init.snapshot.snapshot_sequence = at
            made.init.snapshot.snapshot.CopyFrom(packed(snapshot))
        return made

    @staticmethod
    def event(sequence: int, message: Message) -> In:
        """A stored event."""
        return In(event=event_sourced_pb2.EventSourcedEvent(sequence=sequence, payload=packed(message)))

    @staticmethod
    def command(entity: str, number: int, name: str, message: Message) -> In:
        """A command."""
        return In(command=command(entity, number, name, message))

    @staticmethod
    def reply(
        number: int,
        action: entity_pb2.ClientAction | None,
        events: Sequence[Message] = (),
        snapshot: Message | None = None,
        effects: Sequence[entity_pb2.SideEffect] = (),
    ) -> Out:
        """The function's answer to one command."""
        made = event_sourced_pb2.EventSourcedReply(command_id=number, client_action=action, side_effects=effects)
        made.events.extend(packed(event) for event in events)
        if snapshot is not None:
            made.snapshot.CopyFrom(packed(snapshot))
        return Out(reply=made)

    @staticmethod
    def failure(number: int, text: str) -> Out:
        """The handler has crashed."""
        return Out(failure=entity_pb2.Failure(command_id=number, description=text))


class ValueEntity:
    """Messages on the stream of a value entity."""

    @staticmethod
    def init(service: str, entity: str, state: Message | None = None) -> value_entity_pb2.ValueEntityStreamIn:
        """The first message: the state is always there, its value only when one is stored."""
        made = value_entity_pb2.ValueEntityStreamIn()
        made.init.service_name, made.init.entity_id = service, entity
        made.init.state.SetInParent()
        if state is not None:
            made.init.state.value.CopyFrom(packed(state))
        return made

    @staticmethod
    def command(entity: str, number: int, name: str, message: Message) -> value_entity_pb2.ValueEntityStreamIn:
        """A command."""
        return value_entity_pb2.ValueEntityStreamIn(command=command(entity, number, name, message))

    @staticmethod
    def reply(
        number: int,
        action: entity_pb2.ClientAction | None,
        update: Message | None = None,
        delete: bool = False,
        effects: Sequence[entity_pb2.SideEffect] = (),
    ) -> value_entity_pb2.ValueEntityStreamOut:
        """The function's answer to one command."""
        made = value_entity_pb2.ValueEntityReply(command_id=number, client_action=action, side_effects=effects)
        if update is not None:
            made.state_action.update.value.CopyFrom(packed(update))
        if delete:
            made.state_action.delete.SetInParent()
        return value_entity_pb2.ValueEntityStreamOut(reply=made)

    @staticmethod
    def failure(number: int, text: str) -> value_entity_pb2.ValueEntityStreamOut:
        """The handler has crashed."""
        return value_entity_pb2.ValueEntityStreamOut(failure=entity_pb2.Failure(command_id=number, description=text))


class Crdt:
    """Messages on the stream of a CRDT."""

    @staticmethod
    def init(service: str, entity: str, delta: crdt_pb2.CrdtDelta | None = None) -> crdt_pb2.CrdtStreamIn:
        """The first message; with the value when there is one."""
        return crdt_pb2.CrdtStreamIn(init=crdt_pb2.CrdtInit(service_name=service, entity_id=entity, delta=delta))

    @staticmethod
    def command(entity: str, number: int, name: str, message: Message, streamed: bool = False) -> crdt_pb2.CrdtStreamIn:
        """A command."""
        return crdt_pb2.CrdtStreamIn(command=command(entity, number, name, message, streamed))

    @staticmethod
    def cancelled(entity: str, number: int) -> crdt_pb2.CrdtStreamIn:
        """The caller of a streamed command has gone."""
        return crdt_pb2.CrdtStreamIn(stream_cancelled=entity_pb2.StreamCancelled(entity_id=entity, id=number))

    @staticmethod
    def delta(delta: crdt_pb2.CrdtDelta) -> crdt_pb2.CrdtStreamIn:
        """A change made elsewhere."""
        return crdt_pb2.CrdtStreamIn(delta=delta)

    @staticmethod
    def reply(
        number: int,
        action: entity_pb2.ClientAction | None,
        update: crdt_pb2.CrdtDelta | None = None,
        delete: bool = False,
        effects: Sequence[entity_pb2.SideEffect] = (),
        streamed: bool = False,
    ) -> crdt_pb2.CrdtStreamOut:
        """The function's answer to one command."""
        made = crdt_pb2.CrdtReply(command_id=number, client_action=action, side_effects=effects, streamed=streamed)
        if update is not None or delete:
            made.state_action.CopyFrom(_state_action(update))
        return crdt_pb2.CrdtStreamOut(reply=made)

    @staticmethod
    def message(number: int, action: entity_pb2.ClientAction | None, end: bool = False) -> crdt_pb2.CrdtStreamOut:
        """A further answer to a streamed command."""
        return crdt_pb2.CrdtStreamOut(streamed_message=crdt_pb2.CrdtStreamedMessage(command_id=number, client_action=action, end_stream=end))

    @staticmethod
    def cancel_response(number: int, update: crdt_pb2.CrdtDelta | None = None) -> crdt_pb2.CrdtStreamOut:
        """The function's last word on a streamed command whose caller has gone."""
        made = crdt_pb2.CrdtStreamCancelledResponse(command_id=number)
        if update is not None:
            made.state_action.CopyFrom(_state_action(update))
        return crdt_pb2.CrdtStreamOut(stream_cancelled_response=made)


def _state_action(update: crdt_pb2.CrdtDelta | None) -> crdt_pb2.CrdtStateAction:
    """A change, or the deletion."""
    return crdt_pb2.CrdtStateAction(delete=crdt_pb2.CrdtDelete()) if update is None else crdt_pb2.CrdtStateAction(update=update)


class Action:
    """Messages of actions."""

    @staticmethod
    def command(service: str, name: str, message: Message | None = None) -> action_pb2.ActionCommand:
        """A call, or the opening of one whose requests are streamed."""
        return action_pb2.ActionCommand(service_name=service, name=name, payload=None if message is None else packed(message))

    @staticmethod
    def request(message: Message) -> action_pb2.ActionCommand:
        """One request of a streamed call."""
        return action_pb2.ActionCommand(payload=packed(message))

    @staticmethod
    def response(action: entity_pb2.ClientAction | None = None, effects: Sequence[entity_pb2.SideEffect] = ()) -> action_pb2.ActionResponse:
        """What the function answers; nothing for the caller when there is no action."""
        made = action_pb2.ActionResponse(side_effects=effects)
        kind = action.WhichOneof("action") if action is not None else None
        if action is not None and kind is not None:
            getattr(made, kind).CopyFrom(getattr(action, kind))
        return made
