"""Entities and actions as classes: the decorators, and what is known of a class once it is decorated."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pool import DescriptorPool

from cloudstate_sdk import shapes
from cloudstate_sdk.crdt.base import Crdt
from cloudstate_sdk.kinds import kind_of, url_of, urls_for

T = TypeVar("T", bound=type)
F = TypeVar("F", bound=Callable[..., Any])

_ROLE = "__cloudstate_role__"
_DEFINITION = "__cloudstate_definition__"
EVENT_SOURCED = "cloudstate.eventsourced.EventSourced"
VALUE_ENTITY = "cloudstate.valueentity.ValueEntity"
CRDT = "cloudstate.crdt.Crdt"
ACTION = "cloudstate.action.ActionProtocol"
ANY = "google.protobuf.Any"
KINDS = "str, bytes, bool, int, float, Json, Any or Value"
"""What a value may be besides a message, as errors tell it."""


class DefinitionError(Exception):
    """An entity class does not fit its gRPC service: says what, where and which rule."""


@dataclass(slots=True)
class Command:
    """One command: its method on the class, the kind of its request, and what its gRPC method is like."""

    handler: str
    request: Any
    """A message class, or another kind that an Any may hold."""
    pool: DescriptorPool
    client_streaming: bool = False
    server_streaming: bool = False
    opens: bool = False
    """The request is a `google.protobuf.Any`: what it holds is for the method."""
    wraps: bool = False
    """So is the reply: what the method returns goes into it."""


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
    state: type | None = None
    """What kind of value a value entity keeps."""
    crdt: type[Crdt] | None = None
    """What a CRDT entity is; None: its first command chooses."""
    commands: dict[str, Command] = field(default_factory=dict)
    events: dict[str, tuple[str, type]] = field(default_factory=dict)
    """By type URL of the event: method, and the kind that it takes."""
    snapshot: str = ""
    restore: str = ""
    restored: type | None = None

    def event_handler(self, url: str) -> tuple[str, type]:
        """Method and kind for an event. LookupError when no method takes it."""
        found = self.events.get(url) or next((self.events[close] for close in urls_for(url) if close in self.events), None)
        if found is None:
            raise LookupError(f"{self.service}: no @event method takes {url}")
        return found


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


def value_entity(service: str, *, persistence_id: str, descriptor: FileDescriptor, state: type, passivation: float = 0.0) -> Callable[[T], T]:
    """Make a class a value entity of a gRPC service: it keeps one value of kind `state`, which commands read, replace or delete.

    `state` is a message class, `str`, `bytes`, `bool`, `int`, `float`, `Json`, `Any` for a value that stays encoded, or `Value` for one
    of many kinds.

    `passivation` seconds without a command the proxy lets the entity leave memory (0: the proxy's default). DefinitionError when class and
    service do not fit.
    """

    def decorate(entity: T) -> T:
        kind = kind_of(state)
        if kind is None:
            raise DefinitionError(f"{entity.__name__}: state={state!r} is no kind of value; it must be a message class, {KINDS}")
        return _define(entity, Definition(entity, VALUE_ENTITY, service, descriptor, persistence_id, passivation=passivation, state=kind))

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
        if not (crdt is None or (isinstance(crdt, type) and issubclass(crdt, Crdt))):
            raise DefinitionError(f"{entity.__name__}: crdt={crdt!r} is no replicated type; it must be a class such as ORSet, without what it holds")
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
    if not isinstance(definition.descriptor, FileDescriptor):
        raise DefinitionError(f"{entity.__name__}: descriptor={definition.descriptor!r} is none; it must be the DESCRIPTOR of such a module")
    for name, method in inspect.getmembers(entity, inspect.isfunction):
        _add(definition, name, method)
    _check(definition)
    setattr(entity, _DEFINITION, definition)
    return entity


def definition_of(entity: type) -> Definition:
    """What a decorator made of a class; DefinitionError for any other."""
    found = vars(entity).get(_DEFINITION)  # its own: what a class inherits is not it
    if not isinstance(found, Definition):
        raise DefinitionError(f"{entity.__name__}: is not an entity; decorate it with @event_sourced, @value_entity, @crdt_entity or @action")
    return found


def _add(definition: Definition, name: str, method: Callable[..., Any]) -> None:
    role = getattr(method, _ROLE, None)
    if role is not None and (broken := shapes.of_method(method, role)):
        raise DefinitionError(f"{definition.entity.__name__}.{name}: {broken}")
    if role == "command":
        service = definition.descriptor.services_by_name.get(definition.service.rpartition(".")[2])
        request, wanted = _kind(definition, method, definition.entity_type == ACTION), list(service.methods_by_name) if service is not None else []
        definition.commands[shapes.served_by(name, wanted)] = Command(name, request, definition.descriptor.pool)
    elif role == "event":
        kind = _kind(definition, method)
        if (other := definition.events.get(url_of(kind))) is not None:
            raise DefinitionError(f"{definition.entity.__name__}: {other[0]} and {name} take the same events")
        definition.events[url_of(kind)] = name, kind
    elif role == "snapshot":
        definition.snapshot = name
    elif role == "restore":
        definition.restore, definition.restored = name, _kind(definition, method)


def _kind(definition: Definition, method: Callable[..., Any], streams: bool = False) -> type:
    """What a method's parameter is annotated with; `streams`: or what the iterator gives that it is annotated with."""
    hints = typing.get_type_hints(method)
    names = list(inspect.signature(method).parameters)
    found = hints.get(names[1]) if len(names) > 1 else None
    if streams and typing.get_origin(found) in shapes.STREAMS:
        found = typing.get_args(found)[0]
    kind = kind_of(found)
    if kind is None:
        raise DefinitionError(f"{definition.entity.__name__}.{method.__name__}: parameter 1 must be annotated with a protobuf message, {KINDS}")
    return kind


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
        command.opens, command.wraps = method.input_type.full_name == ANY, method.output_type.full_name == ANY
        taken, wanted_type = _shown(command.request), method.input_type.full_name
        if taken != wanted_type and not command.opens:
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
    for command in definition.commands.values():
        handler = getattr(definition.entity, command.handler)
        answers = shapes.of_answers(handler, command.server_streaming and definition.entity_type == ACTION)
        if broken := answers or shapes.of_requests(handler, command.client_streaming):
            raise DefinitionError(f"{where}.{command.handler}: {broken}")
    if broken := shapes.of_class(definition.entity, definition.entity_type == EVENT_SOURCED):
        raise DefinitionError(f"{where}: {broken}")


def _shown(kind: Any) -> str:
    return str(kind.DESCRIPTOR.full_name) if hasattr(kind, "DESCRIPTOR") else str(kind.__name__)
