"""Which consumers a function declares, and which of their methods an event goes to."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import descriptor_pb2

from cloudstate_core.pb.cloudstate import entity_pb2, eventing_pb2
from stateful_proxy.eventing.subscriptions import check_eventing, event_log_subscriptions, topic_subscriptions
from stateful_proxy.service import ACTION, InvalidSpec, ServiceModel, model_of

Method = tuple[str, str, dict[str, str]]
"""Name, input type and source; `out` there is the topic that it publishes to."""


def model(services: dict[str, list[Method]]) -> ServiceModel:
    """Actions with these methods."""
    file = descriptor_pb2.FileDescriptorProto(name="t.proto", package="t", syntax="proto3", dependency=["google/protobuf/any.proto"])
    any_file = descriptor_pb2.FileDescriptorProto(name="google/protobuf/any.proto", package="google.protobuf", syntax="proto3")
    any_file.message_type.add(name="Any")
    for name in ("One", "Two"):
        file.message_type.add(name=name)
    spec = entity_pb2.EntitySpec()
    spec.service_info.protocol_minor_version = 2
    for service, methods in services.items():
        spec.entities.add(entity_type=ACTION, service_name=f"t.{service}")
        added = file.service.add(name=service)
        for name, input_type, source in methods:
            method = added.method.add(name=name, input_type=f".{input_type}", output_type=".t.One")
            if source:
                eventing: Any = eventing_pb2.Eventing()
                for key, value in source.items():
                    if key == "out":
                        eventing.out.topic = value
                    else:
                        setattr(getattr(eventing, "in"), key, value)
                method.options.MergeFromString(descriptor_option(eventing))
    spec.proto = descriptor_pb2.FileDescriptorSet(file=[any_file, file]).SerializeToString()
    return model_of(spec)


def descriptor_option(eventing: Any) -> bytes:
    """The option as a compiler writes it: field 1081, a message."""
    body = eventing.SerializeToString()
    return b"\xca\x43" + bytes([len(body)]) + body


def test_methods_of_the_same_source_and_group_are_one_consumer() -> None:
    services = {
        "A": [("One", "t.One", {"event_log": "carts"}), ("Any", "google.protobuf.Any", {"event_log": "carts"}), ("None", "t.One", {})],
        "B": [("One", "t.One", {"event_log": "carts"}), ("Topic", "t.Two", {"topic": "carts"})],
        "C": [("One", "t.Two", {"event_log": "carts", "consumer_group": "t.A"}), ("Other", "t.One", {"event_log": "orders"})],
    }
    found = event_log_subscriptions(model(services))
    assert [(s.source, s.group, s.consumer, sorted(m.path for m in s.methods.values())) for s in found] == [
        ("carts", "t.A", "t.A/carts", ["/t.A/Any", "/t.A/One", "/t.C/One"]),
        ("carts", "t.B", "t.B/carts", ["/t.B/One"]),
        ("orders", "t.C", "t.C/orders", ["/t.C/Other"]),
    ]


@pytest.mark.parametrize(
    ("type_url", "with_any", "without"),
    [
        ("type.googleapis.com/t.One", "One", "One"),
        ("other.example/t.One", "One", "One"),
        ("type.googleapis.com/t.Two", "Any", None),
        ("json.cloudstate.io/t.One", "Any", None),
        ("p.cloudstate.io/string", "Any", None),
        ("", "Any", None),
    ],
)
def test_an_event_goes_to_the_method_of_its_type_else_to_the_one_that_takes_any(type_url: str, with_any: str, without: str | None) -> None:
    one, anything = ("One", "t.One", {"event_log": "e"}), ("Any", "google.protobuf.Any", {"event_log": "e"})
    for methods, expected in (([one, anything], with_any), ([one], without)):
        (subscription,) = event_log_subscriptions(model({"A": methods}))
        method = subscription.method_for(type_url)
        assert (method.name if method else None) == expected


@pytest.mark.parametrize(
    ("services", "message"),
    [
        (
            {"A": [("One", "t.One", {"event_log": "carts"}), ("Two", "t.One", {"event_log": "carts"})]},
            r"t.A.Two and t.A.One: both take t.One from event log 'carts'",
        ),
        ({"A": [("One", "t.One", {"event_log": ""})]}, r"t.A.One: eventing.in.event_log is empty: it must be the persistence id"),
    ],
)
def test_what_is_not_clear_is_refused(services: Any, message: str) -> None:
    with pytest.raises(InvalidSpec, match=message):
        event_log_subscriptions(model(services))


def test_topics_and_event_logs_of_the_same_name_are_not_confused() -> None:
    services = {
        "A": [("One", "t.One", {"topic": "carts"}), ("Log", "t.One", {"event_log": "carts"}), ("Out", "t.Two", {"out": "receipts"})],
        "B": [("Two", "t.Two", {"topic": "carts", "consumer_group": "t.A"})],
    }
    made = model(services)
    assert [(s.source, s.group, sorted(m.path for m in s.methods.values())) for s in topic_subscriptions(made)] == [
        ("carts", "t.A", ["/t.A/One", "/t.B/Two"])
    ]
    assert {m.path: m.out for m in made.methods.values() if m.out} == {"/t.A/Out": "receipts"}


def test_the_option_of_release_0_5_names_topics() -> None:
    made = entity_pb2.EntitySpec()
    made.service_info.protocol_minor_version = 1
    file = descriptor_pb2.FileDescriptorProto(name="t.proto", package="t", syntax="proto3")
    file.message_type.add(name="One")
    method = file.service.add(name="A").method.add(name="Add", input_type=".t.One", output_type=".t.One")
    method.options.MergeFromString(b"\x9a\xb5\x18" + b"\x0f" + b"\n\x05items" + b"\x12\x06orders")
    made.entities.add(entity_type=ACTION, service_name="t.A")
    made.proto = descriptor_pb2.FileDescriptorSet(file=[file]).SerializeToString()
    found = model_of(made)
    assert [(s.source, s.group) for s in topic_subscriptions(found)] == [("items", "t.A")]
    assert found.methods["/t.A/Add"].out == "orders"


@pytest.mark.parametrize(
    ("source", "sink", "message"),
    [
        ({"topic": ""}, True, "t.A.One: eventing.in.topic is empty: it must be the name of a topic"),
        ({"topic": "a", "out": "a"}, True, "t.A.One: takes its messages from topic 'a' and publishes to it: it would feed itself"),
        ({"out": "a"}, False, "t.A.One: publishes to topic 'a', and no sink is set: set the annotation cloudstate.io/sink"),
        ({"topic": "a", "out": "b"}, True, ""),
        ({"topic": "a"}, False, ""),
    ],
)
def test_what_of_topics_can_be_served(source: dict[str, str], sink: bool, message: str) -> None:
    made = model({"A": [("One", "t.One", source)]})
    if message:
        with pytest.raises(InvalidSpec, match=message):
            check_eventing(made, sink)
    else:
        check_eventing(made, sink)
