"""What commands may do besides computing an answer: fail, let another method answer, cause side effects, and change their entity."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, NoReturn, TypeVar

from google.protobuf import any_pb2
from google.protobuf.message import Message

from cloudstate_sdk.any_values import MESSAGES, Value, to_any
from cloudstate_sdk.crdt.base import NotYourTurn
from cloudstate_sdk.pb.cloudstate import entity_pb2

ANY = MESSAGES + any_pb2.Any.DESCRIPTOR.full_name
"""Type URL of an Any within an Any, which is how callers send and get one."""
S = TypeVar("S", bound=Value)
OVER = "the command is over: nothing can be emitted, updated, deleted or called for it any more"


Entries = Mapping[str, str | bytes] | Iterable[tuple[str, str | bytes]]
"""Metadata: by name, or in order."""


class CommandFailed(Exception):
    """Raised by `fail`: the command ends and the caller sees the text."""


@dataclass(frozen=True, slots=True)
class Forward:
    """What a command returns whose caller another method is to answer; made by `Context.forward`."""

    message: entity_pb2.Forward


class CommandContext:
    """What every command has."""

    def __init__(self, entity_id: str, metadata: entity_pb2.Metadata | None = None) -> None:
        self.entity_id = entity_id
        self.effects: list[entity_pb2.SideEffect] = []
        self._metadata = metadata or entity_pb2.Metadata()
        self.replied = entity_pb2.Metadata()
        """Metadata of the answer."""
        self._over = False

    def close(self) -> None:
        """The command is answered. What is asked for later would be lost, and its entity would not be what is stored."""
        self._over = True

    def _check(self) -> None:
        if self._over:
            raise NotYourTurn(OVER)

    def fail(self, text: str) -> NoReturn:
        """End the command: the caller sees `text`, and nothing that was changed is stored."""
        raise CommandFailed(text)

    def forward(self, service: str, method: str, request: Value, metadata: Entries = ()) -> Forward:
        """Let a method of another service of this function answer: return what this gives. `metadata` is what that method gets of it."""
        message = entity_pb2.Forward(service_name=service, command_name=method)
        pack(message.payload, request)
        fill(message.metadata, metadata)
        return Forward(message)

    def effect(self, service: str, method: str, request: Value, metadata: Entries = (), *, synchronous: bool = False) -> None:
        """Call another method once the change is stored; `synchronous`: before the caller gets the answer. What becomes of it changes nothing
        here. `metadata` is what that method gets of it."""
        self._check()
        effect = entity_pb2.SideEffect(service_name=service, command_name=method, synchronous=synchronous)
        pack(effect.payload, request)
        fill(effect.metadata, metadata)
        self.effects.append(effect)

    def reply_metadata(self, key: str, value: str | bytes) -> None:
        """Give the answer a metadata entry: a response header for its caller (bytes only under a name that ends in `-bin`), and an attribute of the
        event that it is published as, under `ce-NAME`. An answer of a stream has its own."""
        fill(self.replied, [(key, value)])

    def metadata(self, key: str) -> list[str | bytes]:
        """Values of a metadata entry, in their order; empty when there is none. Names are compared without regard to case."""
        wanted = key.lower()
        found = (entry for entry in self._metadata.entries if entry.key.lower() == wanted)
        return [entry.bytes_value if entry.WhichOneof("value") == "bytes_value" else entry.string_value for entry in found]


class Context(CommandContext):
    """Of a command on an event sourced entity."""

    def __init__(self, entity_id: str, apply: Callable[[any_pb2.Any, Value], None], metadata: entity_pb2.Metadata | None = None) -> None:
        super().__init__(entity_id, metadata)
        self.events: list[any_pb2.Any] = []
        """As they will be stored."""
        self._apply = apply

    def emit(self, event: Value) -> None:
        """Change the entity by an event; it is stored before the caller gets the answer.

        TypeError when it is nothing that can be stored, LookupError when no @event method takes it, NotYourTurn when the command is over.
        """
        self._check()
        encoded = packed(event)
        self._apply(encoded, event)
        self.events.append(encoded)


class ValueContext(CommandContext, Generic[S]):
    """Of a command on a value entity."""

    def __init__(self, entity_id: str, state: S, exists: bool, metadata: entity_pb2.Metadata | None = None) -> None:
        super().__init__(entity_id, metadata)
        self.state: S = state
        """A copy of the stored value, an empty one when there is none; changing it changes nothing until `update`."""
        self.exists = exists
        """There is a stored value."""
        self.updated: S | None = None
        self.deleted = False

    def update(self, state: S) -> None:
        """Store this value when the command is done. TypeError for None, NotYourTurn when the command is over."""
        self._check()
        if state is None:
            raise TypeError("None is no value to store; `delete` removes the one that is stored")
        self.updated, self.deleted = state, False

    def delete(self) -> None:
        """Remove the stored value when the command is done; the entity may be updated again later. NotYourTurn when the command is over."""
        self._check()
        self.updated, self.deleted = None, True


class ActionContext(CommandContext):
    """Of a call of an action. `metadata` gives what came with the call, and from a later request on that carries its own, what came with it."""

    def received(self, metadata: entity_pb2.Metadata) -> None:
        """A later request of a streamed call has come."""
        if metadata.entries:
            self._metadata = metadata


def fill(target: entity_pb2.Metadata, entries: Entries) -> None:
    """Add entries to metadata, which is not there before the first of them."""
    for key, value in entries.items() if isinstance(entries, Mapping) else entries:
        target.entries.add(key=key, **{"bytes_value" if isinstance(value, bytes) else "string_value": value})


def pack(target: any_pb2.Any, value: Value) -> None:
    """Put a value into an Any, encoded so that equal values have equal bytes; an Any is taken as it is. TypeError when it is no value."""
    if isinstance(value, Message) and not isinstance(value, any_pb2.Any):
        target.type_url, target.value = MESSAGES + value.DESCRIPTOR.full_name, value.SerializeToString(deterministic=True)
    else:
        target.CopyFrom(to_any(value))


def packed(value: Value) -> any_pb2.Any:
    """A value in an Any of its own; see `pack`."""
    found = any_pb2.Any()
    pack(found, value)
    return found


def reply(target: entity_pb2.Reply, value: Value, wraps: bool, context: CommandContext) -> None:
    """What a command returned, as its caller reads it; `wraps`: as a `google.protobuf.Any`, which any value may be in. TypeError when it is none."""
    payload = target.payload
    if wraps:
        payload.type_url, payload.value = ANY, packed(value).SerializeToString(deterministic=True)
    elif isinstance(value, Message):
        pack(payload, value)
    else:
        raise TypeError(f"{value!r} is not a protobuf message")
    if context.replied.entries:
        target.metadata.CopyFrom(context.replied)


def answer(action: entity_pb2.ClientAction, result: Any, wraps: bool, context: CommandContext) -> None:
    """What the caller of a command on an entity gets: a value, another method's answer, or nothing."""
    if isinstance(result, Forward):
        action.forward.CopyFrom(result.message)
    elif result is not None:
        reply(action.reply, result, wraps, context)
