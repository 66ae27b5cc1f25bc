"""Events, state, snapshots, requests and replies that are no protobuf messages, but texts, numbers and JSON documents."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from cloudstate_sdk import (
    ActionContext,
    Context,
    Int32,
    Json,
    Value,
    ValueContext,
    action,
    command,
    event,
    event_sourced,
    restore,
    snapshot,
    value_entity,
)
from cloudstate_sdk.actions import Calls
from cloudstate_sdk.any_values import from_any, to_any
from cloudstate_sdk.definition import DefinitionError, definition_of
from cloudstate_sdk.pb.cloudstate import action_pb2
from cloudstate_sdk.testkit import ActionKit, Crashed, EventSourcedKit, ValueKit
from cloudstate_sdk.testkit.proxied import proxied
from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, empty_pb2

from tests.tck.pb.cloudstate.tck.model import eventsourced_pb2 as sourced
from tests.tck.pb.cloudstate.tck.model import valueentity_pb2 as values

BOX, LOG, ECHO = "cloudstate.tck.model.valueentity.ValueEntityTwo", "cloudstate.tck.model.EventSourcedTwo", "test.plain.Echo"


def anything() -> Any:
    """A file whose service takes and returns `google.protobuf.Any`."""
    any_type, empty = ".google.protobuf.Any", ".google.protobuf.Empty"
    method = descriptor_pb2.MethodDescriptorProto
    service = descriptor_pb2.ServiceDescriptorProto(
        name="Echo",
        method=[
            method(name="Back", input_type=any_type, output_type=any_type),
            method(name="Length", input_type=any_type, output_type=any_type),
            method(name="Drop", input_type=any_type, output_type=empty),
            method(name="Each", input_type=any_type, output_type=any_type, client_streaming=True, server_streaming=True),
        ],
    )
    imports = [any_pb2.DESCRIPTOR.name, empty_pb2.DESCRIPTOR.name]
    file = descriptor_pb2.FileDescriptorProto(name="test/plain.proto", package="test.plain", syntax="proto3", dependency=imports, service=[service])
    descriptor_pool.Default().AddSerializedFile(file.SerializeToString())
    return descriptor_pool.Default().FindFileByName(file.name)


PLAIN = anything()


@action(ECHO, descriptor=PLAIN)
class Echo:
    """Gives back what it gets, in four ways of taking it."""

    @command
    def back(self, request: Value, context: ActionContext) -> Value:
        return request

    @command
    def length(self, request: str, context: ActionContext) -> int:
        return len(request)

    @command
    def drop(self, request: any_pb2.Any, context: ActionContext) -> empty_pb2.Empty:
        context.effect(ECHO, "Length", request.type_url)
        return empty_pb2.Empty()

    @command
    async def each(self, requests: AsyncIterator[Json], context: ActionContext) -> AsyncIterator[Value]:
        async for request in requests:
            yield request.value["name"]


def test_an_action_takes_and_returns_any_value() -> None:
    kit = ActionKit(Echo)
    for value in ("text", b"bytes", True, 7, 0.5, Json({"a": [1, None]}), sourced.Persisted(value="x"), Int32(3)):
        back = kit.call("Back", value).reply
        assert (back, type(back)) == (value, type(value))
    assert kit.call("Length", "four").reply == 4
    assert kit.call("Drop", Json([])).effects[0].request == "json.cloudstate.io/object"
    assert [result.reply for result in kit.stream("Each", [Json({"name": name}) for name in ("ann", "bob")])] == ["ann", "bob"]


def test_a_request_of_another_kind_fails_the_call_alone() -> None:
    failure = ActionKit(Echo).call("Length", 4).failure
    assert failure == "Length: the request is not what `length` takes: p.cloudstate.io/int64 is no str"


async def test_a_request_that_is_no_any_fails_the_call_alone() -> None:
    message = action_pb2.ActionCommand(service_name=ECHO, name="Length")
    message.payload.type_url, message.payload.value = "type.googleapis.com/google.protobuf.Any", b"\xff"
    answer = await Calls({ECHO: definition_of(Echo)}).handlers()["handleUnary"].unary_unary(message, None)
    assert answer.failure.description.startswith("Length: the request is not a google.protobuf.Any: ")


async def test_callers_of_a_proxy_send_and_get_anys() -> None:
    async with proxied(Echo) as running:
        reply = await running.call(Echo, "Length", to_any("four"))
        assert from_any(reply, PLAIN.pool) == 4
        document = Json({"b": 1, "a": "ä"}, "note")
        assert from_any(await running.call(Echo, "Back", to_any(document)), PLAIN.pool) == document
        assert not running.function.reports


# Entities ---------------------------------------------------------------------------------------------------------------


@event_sourced(LOG, persistence_id="plain", descriptor=sourced.DESCRIPTOR, snapshot_every=2)
class Diary:
    """Emits what its request spells; keeps the kinds apart."""

    def __init__(self, entity_id: str) -> None:
        self.seen: list[Any] = []

    @command
    def call(self, request: sourced.Request, context: Context) -> sourced.Response:
        said: dict[str, Any] = {"text": "hello", "number": 2, "document": Json({"a": 1}), "truth": True, "other": sourced.Persisted(value="x")}
        if request.id == "object":
            context.emit(object())  # type: ignore[arg-type]
        if request.id:
            context.emit(said[request.id])
        return sourced.Response(message=repr(self.seen))

    @event
    def said(self, event: str) -> None:
        self.seen.append(event)

    @event
    def counted(self, event: int) -> None:
        self.seen.append(event)

    @event
    def noted(self, event: Json) -> None:
        self.seen.append(event.value)

    @event
    def anything_else(self, event: any_pb2.Any) -> None:
        assert isinstance(event, any_pb2.Any | sourced.Persisted | bool)
        self.seen.append("?")

    @snapshot
    def save(self) -> Json:
        return Json(self.seen)

    @restore
    def load(self, saved: Json) -> None:
        self.seen = list(saved.value)


def test_events_and_snapshots_are_plain_values() -> None:
    kit = EventSourcedKit(Diary)
    for kind in ("text", "number", "document", "truth", "other"):
        kit.call("Call", sourced.Request(id=kind))
    expected = ["hello", 2, {"a": 1}, "?", "?"]
    assert kit.events == ["hello", 2, Json({"a": 1}), True, sourced.Persisted(value="x")]
    assert kit.snapshot == Json(expected[:4])
    assert kit.state.seen == expected
    assert kit.restart().seen == expected
    assert kit.restart(snapshot=False).seen == expected


def test_a_history_of_another_language_is_replayed() -> None:
    kit = EventSourcedKit(Diary, events=[Int32(7), Json([1], "com.example.Note"), 2.5])
    assert kit.state.seen == [7, [1], "?"]


def test_what_cannot_be_stored_crashes_the_command_alone() -> None:
    kit = EventSourcedKit(Diary)
    kit.call("Call", sourced.Request(id="text"))
    with pytest.raises(Crashed, match="is not a protobuf message, str, bytes, bool, int, float or Json"):
        kit.call("Call", sourced.Request(id="object"))
    assert kit.state.seen == ["hello"]


def test_an_event_without_a_method_is_named(sample: Any) -> None:
    with pytest.raises(LookupError, match=r"^com\.example\.shoppingcart\.ShoppingCart: no @event method takes p\.cloudstate\.io/string$"):
        EventSourcedKit(sample.Cart, events=["hello"]).restart()


@pytest.mark.parametrize(
    ("kind", "first", "second"),
    [
        (str, "", "x"),
        (bytes, b"", b"x"),
        (bool, False, True),
        (int, 0, 7),
        (float, 0.0, 1.5),
        (Json, Json(None), Json({"a": [1]})),
        (Int32, Int32(0), 7),
        (Value, "", 7),
        (values.Persisted, values.Persisted(), values.Persisted(value="x")),
    ],
)
def test_a_value_entity_keeps_a_plain_value(kind: Any, first: Any, second: Any) -> None:
    seen: list[Any] = []

    @value_entity(BOX, persistence_id="plain", descriptor=values.DESCRIPTOR, state=kind)
    class Holder:
        @command
        def call(self, request: values.Request, context: ValueContext[Any]) -> values.Response:
            seen.append((context.state, context.exists))
            if request.id == "delete":
                context.delete()
            elif request.id:
                context.update(second if request.id == "update" else first)
            return values.Response()

    kit = ValueKit(Holder)
    for name in ("", "empty", "", "update", "", "delete", ""):
        kit.call("Call", values.Request(id=name))
        kit.restart()
    nothing = None if kind is Value else first
    held = [(nothing, False), (nothing, False), (first, True), (first, True), (second, True), (second, True), (nothing, False)]
    assert seen == held
    assert kind is Value or {type(state) for state, _ in seen} == {kind}, "also where a wider number was stored"


def test_a_value_of_another_kind_is_not_kept() -> None:
    @value_entity(BOX, persistence_id="plain", descriptor=values.DESCRIPTOR, state=int)
    class Holder:
        @command
        def call(self, request: values.Request, context: ValueContext[Any]) -> values.Response:
            context.update(True if request.id == "truth" else "text")
            return values.Response()

    kit = ValueKit(Holder, state=3)
    for name, shown in (("truth", "True"), ("text", "'text'")):
        with pytest.raises(Crashed, match=rf"^Holder\.call: {shown} is no int$"):
            kit.call("Call", values.Request(id=name))
    assert kit.state == 3
    with pytest.raises(Crashed, match=r"p\.cloudstate\.io/string is no int"):
        ValueKit(Holder, state="of before").call("Call", values.Request())


def test_definitions_that_cannot_be_are_refused() -> None:
    with pytest.raises(DefinitionError, match=r"^Wrong: state=.*list.* is no kind of value; it must be a message class, str, "):

        @value_entity(BOX, persistence_id="wrong", descriptor=values.DESCRIPTOR, state=list)
        class Wrong:
            pass

    with pytest.raises(DefinitionError, match=r"^Twice: first and second take the same events$"):

        @event_sourced(LOG, persistence_id="wrong", descriptor=sourced.DESCRIPTOR)
        class Twice:
            @event
            def first(self, event: str) -> None: ...

            @event
            def second(self, event: str) -> None: ...

    with pytest.raises(DefinitionError, match=r"^Text\.call: takes str, but .*EventSourcedTwo\.Call takes cloudstate\.tck\.model\.Request$"):

        @event_sourced(LOG, persistence_id="wrong", descriptor=sourced.DESCRIPTOR)
        class Text:
            @command
            def call(self, request: str, context: Context) -> sourced.Response:
                return sourced.Response()
