"""A service with fields of every sort, whose HTTP rules each test chooses."""

from __future__ import annotations

from typing import Any

from google.api import annotations_pb2, http_pb2, httpbody_pb2
from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, duration_pb2, message_factory, timestamp_pb2, wrappers_pb2

from stateful_proxy.transcoding.rules import Route, routes_of

F = descriptor_pb2.FieldDescriptorProto
FIELDS = [
    ("name", F.TYPE_STRING, "", False),
    ("small", F.TYPE_INT32, "", False),
    ("big_number", F.TYPE_INT64, "", False),
    ("ratio", F.TYPE_DOUBLE, "", False),
    ("flag", F.TYPE_BOOL, "", False),
    ("raw", F.TYPE_BYTES, "", False),
    ("color", F.TYPE_ENUM, ".t.Color", False),
    ("inner", F.TYPE_MESSAGE, ".t.Inner", False),
    ("words", F.TYPE_STRING, "", True),
    ("at", F.TYPE_MESSAGE, ".google.protobuf.Timestamp", False),
    ("span", F.TYPE_MESSAGE, ".google.protobuf.Duration", False),
    ("maybe", F.TYPE_MESSAGE, ".google.protobuf.Int64Value", False),
    ("parts", F.TYPE_MESSAGE, ".t.Inner", True),
    ("file", F.TYPE_MESSAGE, ".google.api.HttpBody", False),
]


def service(input_type: str = ".t.All", output_type: str = ".t.All", **rule: Any) -> Any:
    """Descriptor of the method t.S.Do with an HTTP rule; none without `rule`."""
    file = descriptor_pb2.FileDescriptorProto(name="t.proto", package="t", syntax="proto3")
    imports = (timestamp_pb2, duration_pb2, wrappers_pb2, httpbody_pb2)
    file.dependency.extend(module.DESCRIPTOR.name for module in imports)
    color = file.enum_type.add(name="Color")
    color.value.add(name="RED", number=0)
    color.value.add(name="GREEN", number=1)
    inner = file.message_type.add(name="Inner")
    inner.field.add(name="text", number=1, type=F.TYPE_STRING, label=1)
    inner.field.add(name="deep", number=2, type=F.TYPE_MESSAGE, type_name=".t.Inner", label=1)
    everything = file.message_type.add(name="All")
    for number, (name, kind, type_name, repeated) in enumerate(FIELDS, 1):
        everything.field.add(name=name, number=number, type=kind, type_name=type_name or None, label=3 if repeated else 1)
    method = file.service.add(name="S").method.add(name="Do", input_type=input_type, output_type=output_type)
    if rule:
        method.options.Extensions[annotations_pb2.http].CopyFrom(http_pb2.HttpRule(**rule))
    pool = descriptor_pool.DescriptorPool()
    for module in (any_pb2, *imports):
        pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(file.SerializeToString())
    return pool.FindServiceByName("t.S").methods[0]


def routes(**rule: Any) -> list[Route]:
    """Routes of the service."""
    return routes_of([service(**rule)])


def route(**rule: Any) -> Route:
    """The one route that the rule makes."""
    [found] = [r for r in routes(**rule) if r.template.segments != ("t.S", "Do")]
    return found


def parsed(of: Route, payload: bytes) -> Any:
    """A request message, decoded."""
    return message_factory.GetMessageClass(of.method.input_type).FromString(payload)
