"""Entity classes: the decorators, and what is known of a class once it is decorated."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.message import Message

T = TypeVar("T", bound=type)
F = TypeVar("F", bound=Callable[..., Any])

_ROLE = "__cloudstate_role__"
_DEFINITION = "__cloudstate_definition__"
URL = "type.googleapis.com/"


class DefinitionError(Exception):
    """An entity class does not fit its gRPC service: says what, where and which rule."""


class CommandFailed(Exception):
    """Raised by `Context.fail`: the command ends and the caller sees the text."""


class Context:
    """What a command may do besides reading its entity."""

    def __init__(self, entity_id: str, apply: Callable[[Message], None]) -> None:
        self.entity_id = entity_id
        self.events: list[Message] = []
        self._apply = apply

    def emit(self, event: Message) -> None:
        """Change the entity by an event; it is stored before the caller gets the answer."""
        self._apply(event)
        self.events.append(event)

    def fail(self, text: str) -> NoReturn:
        """End the command: the caller sees `text`, and nothing that was emitted is stored."""
        raise CommandFailed(text)


@dataclass(slots=True)
class Command:
    """One command: its method on the class, and its request type."""

    handler: str
    request: type[Message]


@dataclass(slots=True)
class Definition:
    """A decorated class."""

    entity: type
    service: str
    persistence_id: str
    descriptor: FileDescriptor
    snapshot_every: int
    passivation: float
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
        definition = Definition(entity, service, persistence_id, descriptor, snapshot_every, passivation)
        for name, method in inspect.getmembers(entity, inspect.isfunction):
            _add(definition, name, method)
        _check(definition)
        setattr(entity, _DEFINITION, definition)
        return entity

    return decorate


def definition_of(entity: type) -> Definition:
    """What `event_sourced` made of a class; DefinitionError for any other."""
    found = getattr(entity, _DEFINITION, None)
    if not isinstance(found, Definition):
        raise DefinitionError(f"{entity.__name__}: is not an entity; decorate it with @event_sourced")
    return found


def _add(definition: Definition, name: str, method: Callable[..., Any]) -> None:
    role = getattr(method, _ROLE, None)
    if role == "command":
        definition.commands[_camel(name)] = Command(name, _message(definition, method, 1))
    elif role == "event":
        message = _message(definition, method, 1)
        definition.events[message.DESCRIPTOR.full_name] = (name, message)
    elif role == "snapshot":
        definition.snapshot = name
    elif role == "restore":
        definition.restore, definition.restored = name, _message(definition, method, 1)


def _camel(name: str) -> str:
    return re.sub(r"(?:^|_)([a-z0-9])", lambda match: match[1].upper(), name)


def _message(definition: Definition, method: Callable[..., Any], position: int) -> type[Message]:
    """The message class that a parameter is annotated with."""
    hints = typing.get_type_hints(method)
    names = list(inspect.signature(method).parameters)
    found = hints.get(names[position]) if len(names) > position else None
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
    if bool(definition.snapshot) != bool(definition.restore):
        raise DefinitionError(f"{where}: @snapshot and @restore go together")
