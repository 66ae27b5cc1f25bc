"""What a user function serves, from its discovery answer: components, methods, and where each request carries the entity's key.

A function ships its own descriptors: they live in a pool of their own, files may come in any order, and options are read by number, since
old and new functions give the same option name different numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import DecodeError

from cloudstate_core.entity_key import KeyField, MalformedMessage, key_of
from cloudstate_core.pb.cloudstate import entity_pb2
from cloudstate_core.pb.cloudstate_knative.v1 import coordination_pb2
from stateful_proxy.eventing.declared import eventing_of
from stateful_proxy.transcoding.rules import InvalidRule, Route, routes_of

EVENT_SOURCED = "cloudstate.eventsourced.EventSourced"
VALUE_ENTITY = "cloudstate.valueentity.ValueEntity"
CRDT = "cloudstate.crdt.Crdt"
ACTION = "cloudstate.action.ActionProtocol"
STATELESS_FUNCTION = "cloudstate.function.StatelessFunction"
"""What actions were called in protocol 0.1: taken, not advertised."""
SUPPORTED = (ACTION, VALUE_ENTITY, EVENT_SOURCED, CRDT)
"""What a function is told that this proxy supports."""
OWNED = frozenset((EVENT_SOURCED, VALUE_ENTITY))
"""Entities that live at one proxy at a time: the owner of their shard."""
STATELESS = frozenset((ACTION, STATELESS_FUNCTION))
TAKEN = (*SUPPORTED, STATELESS_FUNCTION)
"""Entity types that this proxy accepts."""
ANY = "google.protobuf.Any"
_KEY_OPTIONS = (1080, 50002)

Version = tuple[int, int]
PROTOCOLS: Sequence[Version] = ((0, 1), (0, 2))
"""Versions of the protocol that this proxy speaks, the oldest first."""


class InvalidSpec(Exception):
    """The function's discovery answer cannot be served: says what, where and which rule. It is reported to the function."""


@dataclass(frozen=True, slots=True)
class MethodInfo:
    """One method that takes commands."""

    path: str
    service: str
    name: str
    persistence_id: str
    entity_type: str
    input_type: str
    output_type: str
    key_fields: tuple[KeyField, ...]
    key_names: str
    passivation: float | None
    """The component's own idle time in seconds, if it names one."""
    client_streaming: bool = False
    server_streaming: bool = False
    owned: bool = True
    """It works on an entity that lives at one proxy at a time."""
    out: str = ""
    """Topic that its answers are published to."""

    output_url: str = field(init=False)
    """Type URL of the answers that callers expect."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "output_url", f"type.googleapis.com/{self.output_type}")

    def mistyped(self, url: str) -> str:
        """What to tell a function whose answer has this type URL, which callers do not expect."""
        return f"Warning: {self.service}.{self.name}: Expected reply type_url to be [{self.output_url}] but was [{url}]."


@dataclass(frozen=True, slots=True)
class ServiceModel:
    """All components of a function."""

    methods: Mapping[str, MethodInfo]
    services: Sequence[str]
    pool: descriptor_pool.DescriptorPool
    name: str
    library: str
    files: Mapping[str, bytes]
    """The function's descriptors by file name, serialized."""
    protocol: tuple[int, int] = (0, 2)
    """The version that the function speaks, (0, 0) for one that does not say."""
    routes: Sequence[Route] = ()
    """HTTP routes of the methods, the one to prefer first."""

    def key(self, method: MethodInfo, payload: bytes) -> str:
        """The entity key in a request; '' when it is missing. MalformedMessage when the request does not parse."""
        return key_of(payload, method.key_fields)

    def method_table(self) -> list[coordination_pb2.Method]:
        """The methods as routers need them."""
        return [
            coordination_pb2.Method(
                path=m.path,
                persistence_id=m.persistence_id,
                stateless=not m.owned,
                key_fields=[coordination_pb2.KeyField(numbers=numbers, type=kind) for numbers, kind in m.key_fields],
            )
            for m in self.methods.values()
        ]


def model_of(spec: entity_pb2.EntitySpec, oldest: Version = PROTOCOLS[0]) -> ServiceModel:
    """Check a discovery answer and make the model of it. `oldest`: the protocol that a function must speak at least. InvalidSpec names the
    first breach."""
    if not spec.entities:
        raise InvalidSpec("the function serves no entity: EntitySpec.entities must have at least one")
    version = _version(spec.service_info)
    if version < oldest:
        raise InvalidSpec(
            f"protocol version {_shown(version)}: this proxy is set to take {_shown(oldest)} and later (CLOUDSTATE_OLDEST_PROTOCOL); "
            "an SDK that announces no version counts as 0.1"
        )
    files = _files(spec.proto)
    pool = _pool(files)
    methods: dict[str, MethodInfo] = {}
    owners: dict[str, str] = {}
    for entity in spec.entities:
        for method in _component(entity, pool):
            methods[method.path] = method
        if entity.entity_type in STATELESS:
            continue
        persistence_id = entity.persistence_id or entity.service_name
        if persistence_id in owners:
            raise InvalidSpec(
                f"{entity.service_name} and {owners[persistence_id]}: have the same persistence id {persistence_id!r}; each needs its own"
            )
        owners[persistence_id] = entity.service_name
    info = spec.service_info
    library = f"{info.support_library_name} {info.support_library_version}".strip()
    services = sorted({m.service for m in methods.values()})
    contents = {f.name: f.SerializeToString() for f in files}
    return ServiceModel(methods, services, pool, info.service_name, library, contents, version, _routes(services, pool))


def _routes(services: Sequence[str], pool: descriptor_pool.DescriptorPool) -> list[Route]:
    """HTTP routes of all methods but those that stream their requests, which HTTP/JSON cannot."""
    methods = [method for name in services for method in pool.FindServiceByName(name).methods if not method.client_streaming]
    try:
        return routes_of(methods)
    except InvalidRule as error:
        raise InvalidSpec(str(error)) from error


def _version(info: entity_pb2.ServiceInfo) -> Version:
    """The protocol that a function speaks. SDKs older than the fields announce 0.0, which is 0.1. InvalidSpec on one that is not known."""
    announced = (info.protocol_major_version, info.protocol_minor_version)
    version = announced if any(announced) else PROTOCOLS[0]
    if version not in PROTOCOLS:
        raise InvalidSpec(f"protocol version {_shown(version)}: this proxy speaks {' and '.join(map(_shown, PROTOCOLS))}")
    return version


def _shown(version: Version) -> str:
    return f"{version[0]}.{version[1]}"


def difference(before: ServiceModel, after: ServiceModel) -> str:
    """What a function serves otherwise than before, the weightiest first; '' when it is the same."""
    for path, method in before.methods.items():
        if path not in after.methods:
            return f"{path} is gone"
        if after.methods[path] != method:
            return f"{path} is not what it was"
    added = sorted(after.methods.keys() - before.methods.keys())
    if added:
        return f"{', '.join(added)} came"
    changed = sorted(name for name in before.files.keys() | after.files.keys() if before.files.get(name) != after.files.get(name))
    return f"the descriptors of {', '.join(changed)} are not what they were" if changed else ""


def _files(serialized: bytes) -> Sequence[descriptor_pb2.FileDescriptorProto]:
    try:
        return descriptor_pb2.FileDescriptorSet.FromString(serialized).file
    except DecodeError as error:
        raise InvalidSpec("EntitySpec.proto: is not a serialized google.protobuf.FileDescriptorSet") from error


def _pool(files: Sequence[descriptor_pb2.FileDescriptorProto]) -> descriptor_pool.DescriptorPool:
    """A pool with every file of a set, whatever their order."""
    waiting = {file.name: file for file in files}
    pool, added = descriptor_pool.DescriptorPool(), set[str]()
    missing = {f"{d} (imported by {f.name})" for f in waiting.values() for d in f.dependency if d not in waiting}
    if missing:
        raise InvalidSpec(f"EntitySpec.proto: has not all files: {', '.join(sorted(missing))}")
    while waiting:
        ready = [file for file in waiting.values() if added.issuperset(file.dependency)]
        if not ready:
            raise InvalidSpec(f"EntitySpec.proto: files import each other in a circle: {', '.join(sorted(waiting))}")
        for file in ready:
            try:
                pool.AddSerializedFile(file.SerializeToString())
            except TypeError as error:
                raise InvalidSpec(f"EntitySpec.proto: {file.name}: {error}") from error
            added.add(file.name)
            del waiting[file.name]
    return pool


def _component(entity: entity_pb2.Entity, pool: descriptor_pool.DescriptorPool) -> list[MethodInfo]:
    if entity.entity_type not in TAKEN:
        raise InvalidSpec(f"{entity.service_name}: entity type {entity.entity_type!r} is not supported; supported: {', '.join(TAKEN)}")
    try:
        service = pool.FindServiceByName(entity.service_name)
    except KeyError as error:
        raise InvalidSpec(f"{entity.service_name}: EntitySpec.proto does not define this service") from error
    timeout = entity.passivation_strategy.timeout.timeout
    return [_method(entity, method, timeout / 1000 if timeout > 0 else None) for method in service.methods]


def _method(entity: entity_pb2.Entity, method: MethodDescriptor, passivation: float | None) -> MethodInfo:
    where = f"{entity.service_name}.{method.name}"
    keys: list[FieldDescriptor] = []
    if entity.entity_type not in STATELESS:
        _check_streams(where, entity.entity_type, method)
        keys = [field for field in method.input_type.fields if _is_key(field)]
        if not keys:
            raise InvalidSpec(f"{where}: {method.input_type.full_name} has no entity key; mark a field with (cloudstate.entity_key) = true")
    return MethodInfo(
        path=f"/{entity.service_name}/{method.name}",
        service=entity.service_name,
        name=method.name,
        persistence_id=entity.persistence_id or entity.service_name,
        entity_type=entity.entity_type,
        input_type=method.input_type.full_name,
        output_type=method.output_type.full_name,
        key_fields=tuple(((field.number,), field.type) for field in keys),
        key_names=_names(method.input_type, keys),
        passivation=passivation,
        client_streaming=method.client_streaming,
        server_streaming=method.server_streaming,
        owned=entity.entity_type in OWNED,
        out=eventing_of(method).out.topic,
    )


def _check_streams(where: str, entity_type: str, method: MethodDescriptor) -> None:
    """What methods of an entity may stream. InvalidSpec when this one streams more."""
    if entity_type == CRDT and method.client_streaming:
        raise InvalidSpec(f"{where}: streams its requests; a CRDT entity may stream its answers only")
    if entity_type in OWNED and (method.client_streaming or method.server_streaming):
        kind = "an event sourced entity" if entity_type == EVENT_SOURCED else "a value entity"
        raise InvalidSpec(f"{where}: is a streaming method; {kind} takes unary ones only")


def _names(message: Descriptor, keys: Sequence[FieldDescriptor]) -> str:
    return " and ".join(f"{message.full_name}.{field.name}" for field in keys)


def _is_key(field: FieldDescriptor) -> bool:
    """True when either key option is set; read from the serialized options, whatever extension they were written with."""
    if field.is_repeated or field.type == FieldDescriptor.TYPE_MESSAGE:
        return False
    options = field.GetOptions().SerializeToString()
    return any(_flag(options, number) for number in _KEY_OPTIONS)


def _flag(options: bytes, number: int) -> bool:
    """A flag among options; one that is no flag is another's option with the same number."""
    try:
        return key_of(options, [((number,), FieldDescriptor.TYPE_BOOL)]) == "true"
    except MalformedMessage:
        return False
