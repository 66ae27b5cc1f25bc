"""Entities and actions as classes: the decorators, and what is known of a class once it is decorated."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import AsyncIterable, AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.message import Message

from cloudstate_sdk.crdt.base import Crdt

T = TypeVar("T", bound=type)
F = TypeVar("F", bound=Callable[..., Any])

_ROLE = "__cloudstate_role__"
_DEFINITION = "__cloudstate_definition__"
URL = "type.googleapis.com/"
EVENT_SOURCED = "cloudstate.eventsourced.EventSourced"
VALUE_ENTITY = "cloudstate.valueentity.ValueEntity"
CRDT = "cloudstate.crdt.Crdt"
ACTION = "cloudstate.action.ActionProtocol"


class DefinitionError(Exception):
    """An entity class does not fit its gRPC service: says what, where and which rule."""


@dataclass(slots=True)
class Command:
    """One command: its method on the class, its request type, and what of it streams."""

    handler: str
    request: type[Message]
    client_streaming: bool = False
    server_streaming: bool = False


@dataclass(slots=True)
class Definition:
    """A decorated class."""

    entity: type
    entity_type: str
    """Full name of the protocol that serves its kind."""
    service: str
    descriptor: FileDescriptor
    persistence_id: str = ""
    snapshot_every: int = 0
    passivation: float = 0.0
    state: type[Message] | None = None
    """What a value entity keeps."""
    crdt: type[Crdt] | None = None
    """What a CRDT entity is; None: its first command chooses."""
    commands: dict[str, Command] = field(default_factory=dict)
    events: dict[str, tuple[str, type[Message]]] = field(default_factory=dict)
    """By full name of the event message: method and message class."""
    snapshot: str = ""
    restore: str = ""
    restored: type[Message] | None = None


def _mark(role: str) -> Callable[[F], F]:
    def mark(method: F) -> F:
        setattr(method, _ROLE, role)
        return method

    return mark


command = _mark("command")
event = _mark("event")
snapshot = _mark("snapshot")
restore = _mark("restore")


def event_sourced(
    service: str, *, persistence_id: str, descriptor: FileDescriptor, snapshot_every: int = 100, passivation: float = 0.0
) -> Callable[[T], T]:
    """Make a class an event sourced entity of a gRPC service.

    `snapshot_every` events a snapshot is taken (0: never); `passivation` seconds without a command the proxy lets the entity leave
    memory (0: the proxy's default). DefinitionError when class and service do not fit.
    """

    def decorate(entity: T) -> T:
        return _define(entity, Definition(entity, EVENT_SOURCED, service, descriptor, persistence_id, snapshot_every, passivation))

    return decorate


def value_entity(
    service: str, *, persistence_id: str, descriptor: FileDescriptor, state: type[Message], passivation: float = 0.0
) -> Callable[[T], T]:
    """Make a class a value entity of a gRPC service: it keeps one message of type `state`, which commands read, replace or delete.

    `passivation` seconds without a command the proxy lets the entity leave memory (0: the proxy's default). DefinitionError when class and
    service do not fit.
    """

    def decorate(entity: T) -> T:
        return _define(entity, Definition(entity, VALUE_ENTITY, service, descriptor, persistence_id, passivation=passivation, state=state))

    return decorate


def crdt_entity(
    service: str, *, persistence_id: str, descriptor: FileDescriptor, crdt: type[Crdt] | None = None, passivation: float = 0.0
) -> Callable[[T], T]:
    """Make a class a CRDT entity of a gRPC service: a value that lives in every pod that is asked for it, changes there at once, and is told to
    the others. Commands may stream their answers.

    `crdt` is its type; without one, the first command chooses. `passivation` seconds without a command or open stream the proxy lets the entity
    leave memory (0: the proxy's default). DefinitionError when class and service do not fit.
    """

    def decorate(entity: T) -> T:
        return _define(entity, Definition(entity, CRDT, service, descriptor, persistence_id, passivation=passivation, crdt=crdt))

    return decorate


def action(service: str, *, descriptor: FileDescriptor) -> Callable[[T], T]:
    """Make a class an action: commands of a gRPC service that work on no entity, and may stream in and out.

    A streamed request is an async iterator of messages, a streamed answer an async generator. DefinitionError when class and service do not
    fit.
    """

    def decorate(entity: T) -> T:
        return _define(entity, Definition(entity, ACTION, service, descriptor))

    return decorate


def _define(entity: T, definition: Definition) -> T:
    for name, method in inspect.getmembers(entity, inspect.isfunction):
        _add(definition, name, method)
    _check(definition)
    setattr(entity, _DEFINITION, definition)
    return entity


def definition_of(entity: type) -> Definition:
    """What a decorator made of a class; DefinitionError for any other."""
    found = getattr(entity, _DEFINITION, None)
    if not isinstance(found, Definition):
        raise DefinitionError(f"{entity.__name__}: is not an entity; decorate it with @event_sourced, @value_entity, @crdt_entity or @action")
    return found


def _add(definition: Definition, name: str, method: Callable[..., Any]) -> None:
    role = getattr(method, _ROLE, None)
    if role == "command":
        definition.commands[_camel(name)] = Command(name, _message(definition, method, 1, definition.entity_type == ACTION))
    elif role == "event":
        message = _message(definition, method, 1)
        definition.events[message.DESCRIPTOR.full_name] = (name, message)
    elif role == "snapshot":
        definition.snapshot = name
    elif role == "restore":
        definition.restore, definition.restored = name, _message(definition, method, 1)


def _camel(name: str) -> str:
    return re.sub(r"(?:^|_)([a-z0-9])", lambda match: match[1].upper(), name)


def _message(definition: Definition, method: Callable[..., Any], position: int, streams: bool = False) -> type[Message]:
    """The message class that a parameter is annotated with; `streams`: or an iterator of which it is."""
    hints = typing.get_type_hints(method)
    names = list(inspect.signature(method).parameters)
    found = hints.get(names[position]) if len(names) > position else None
    if streams and typing.get_origin(found) in (AsyncIterator, AsyncIterable):
        found = typing.get_args(found)[0]
    if not (isinstance(found, type) and issubclass(found, Message)):
        raise DefinitionError(f"{definition.entity.__name__}.{method.__name__}: parameter {position} must be annotated with a protobuf message")
    return found


def _check(definition: Definition) -> None:
    where = definition.entity.__name__
    services = {s.full_name: s for s in definition.descriptor.services_by_name.values()}
    if definition.service not in services:
        raise DefinitionError(f"{where}: {definition.descriptor.name} does not define service {definition.service}")
    wanted = set(services[definition.service].methods_by_name)
    if missing := sorted(wanted - definition.commands.keys()):
        raise DefinitionError(f"{where}: has no command for {', '.join(missing)}; each method of {definition.service} needs one")
    if surplus := sorted(definition.commands.keys() - wanted):
        raise DefinitionError(f"{where}: {', '.join(surplus)} is not a method of {definition.service}")
    for name, command in definition.commands.items():
        method = services[definition.service].methods_by_name[name]
        if method.input_type.full_name not in (command.request.DESCRIPTOR.full_name, "google.protobuf.Any"):
            taken, wanted_type = command.request.DESCRIPTOR.full_name, method.input_type.full_name
            raise DefinitionError(f"{where}.{command.handler}: takes {taken}, but {definition.service}.{name} takes {wanted_type}")
        command.client_streaming, command.server_streaming = method.client_streaming, method.server_streaming
        if method.client_streaming and definition.entity_type != ACTION:
            raise DefinitionError(f"{where}.{command.handler}: the request of {definition.service}.{name} streams; only those of actions may")
        if method.server_streaming and definition.entity_type not in (ACTION, CRDT):
            raise DefinitionError(f"{where}.{command.handler}: {definition.service}.{name} streams; only actions and CRDT entities may")
    if definition.entity_type != EVENT_SOURCED and (definition.events or definition.snapshot):
        raise DefinitionError(f"{where}: @event, @snapshot and @restore are for event sourced entities")
    if bool(definition.snapshot) != bool(definition.restore):
        raise DefinitionError(f"{where}: @snapshot and @restore go together")
