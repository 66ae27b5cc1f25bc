"""Value entities and actions of the SDK as a proxy sees them, message by message."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from cloudstate_sdk import ActionContext, ValueContext, action, command, event, value_entity
from cloudstate_sdk.definition import DefinitionError
from cloudstate_sdk.pb.cloudstate import action_pb2, entity_pb2, value_entity_pb2
from google.protobuf.message import Message

from tests.tck.pb.cloudstate.tck.model import action_pb2 as actions
from tests.tck.pb.cloudstate.tck.model import valueentity_pb2 as values
from tests.tck.sdk.function import Box, BoxConfigured, BoxTwo, Doer

BOX, DOER = "cloudstate.tck.model.valueentity.ValueEntityTckModel", "cloudstate.tck.model.action.ActionTckModel"
URL = "type.googleapis.com/"
Steps = list[dict[str, Any]]


@pytest.fixture
async def channel(serving: Callable[..., Any]) -> AsyncIterator[grpc.aio.Channel]:
    async with serving(Box, BoxTwo, BoxConfigured, Doer) as channel:
        yield channel


async def test_discovery_tells_every_component(channel: grpc.aio.Channel) -> None:
    discover: Any = channel.unary_unary("/cloudstate.EntityDiscovery/discover", response_deserializer=entity_pb2.EntitySpec.FromString)
    spec = await discover(b"", timeout=60)
    found = [(e.entity_type, e.service_name, e.persistence_id, e.passivation_strategy.timeout.timeout) for e in spec.entities]
    assert found == [
        ("cloudstate.valueentity.ValueEntity", BOX, "value-entity-tck-model", 0),
        ("cloudstate.valueentity.ValueEntity", f"{BOX.removesuffix('TckModel')}Two", "value-entity-tck-model-two", 0),
        ("cloudstate.valueentity.ValueEntity", f"{BOX.removesuffix('TckModel')}Configured", "value-entity-configured", 100),
        ("cloudstate.action.ActionProtocol", DOER, "", 0),
    ]


# Value entities ---------------------------------------------------------------------------------------------------------


class Stream:
    """One box's stream."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        method: Any = channel.stream_stream(
            "/cloudstate.valueentity.ValueEntity/handle", response_deserializer=value_entity_pb2.ValueEntityStreamOut.FromString
        )
        self.call, self.number = method(timeout=60), 0

    async def init(self, value: str | None = None) -> Stream:
        message = value_entity_pb2.ValueEntityStreamIn()
        message.init.service_name, message.init.entity_id = BOX, "a"
        message.init.state.SetInParent()
        if value is not None:
            message.init.state.value.Pack(values.Persisted(value=value))
        await self.call.write(message.SerializeToString())
        return self

    async def process(self, *steps: dict[str, Any]) -> value_entity_pb2.ValueEntityStreamOut:
        self.number += 1
        message = value_entity_pb2.ValueEntityStreamIn()
        message.command.entity_id, message.command.id, message.command.name = "a", self.number, "Process"
        message.command.payload.Pack(values.Request(id="a", actions=[values.RequestAction(**step) for step in steps]))
        await self.call.write(message.SerializeToString())
        answer: value_entity_pb2.ValueEntityStreamOut = await self.call.read()
        return answer


def answered(text: str, number: int = 1, update: str | None = None, delete: bool = False) -> value_entity_pb2.ValueEntityStreamOut:
    out = value_entity_pb2.ValueEntityStreamOut()
    out.reply.command_id = number
    out.reply.client_action.reply.payload.Pack(values.Response(message=text))
    if update is not None:
        out.reply.state_action.update.value.Pack(values.Persisted(value=update))
    if delete:
        out.reply.state_action.delete.SetInParent()
    return out


async def test_a_value_is_read_updated_and_deleted(channel: grpc.aio.Channel) -> None:
    stream = await Stream(channel).init()
    assert await stream.process() == answered("")
    assert await stream.process({"update": {"value": "one"}}) == answered("one", 2, update="one")
    assert await stream.process() == answered("one", 3)
    assert await stream.process({"update": {"value": "two"}}, {"delete": {}}) == answered("", 4, delete=True)
    assert await stream.process() == answered("", 5)
    assert await stream.process({"delete": {}}, {"update": {"value": "three"}}) == answered("three", 6, update="three")


async def test_a_stored_value_comes_with_init(channel: grpc.aio.Channel) -> None:
    stream = await Stream(channel).init("stored")
    assert await stream.process() == answered("stored")


async def test_a_failure_keeps_the_value_and_drops_effects(channel: grpc.aio.Channel) -> None:
    stream = await Stream(channel).init("stored")
    answer = await stream.process({"update": {"value": "never"}}, {"effect": {"id": "b"}}, {"fail": {"message": "no"}})
    expected = value_entity_pb2.ValueEntityStreamOut()
    expected.reply.command_id = 1
    expected.reply.client_action.failure.command_id, expected.reply.client_action.failure.description = 1, "no"
    assert answer == expected
    assert await stream.process() == answered("stored", 2)


async def test_effects_and_forwards(channel: grpc.aio.Channel) -> None:
    stream = await Stream(channel).init()
    answer = await stream.process({"effect": {"id": "b"}}, {"effect": {"id": "c", "synchronous": True}})
    told = [(e.service_name.rsplit(".", 1)[1], e.command_name, e.synchronous) for e in answer.reply.side_effects]
    assert told == [("ValueEntityTwo", "Call", False), ("ValueEntityTwo", "Call", True)]
    answer = await stream.process({"update": {"value": "x"}}, {"forward": {"id": "d"}})
    forward = answer.reply.client_action.forward
    assert (forward.command_name, values.Request.FromString(forward.payload.value).id) == ("Call", "d")
    assert answer.reply.state_action.HasField("update")


# Actions ----------------------------------------------------------------------------------------------------------------


def command_of(name: str, request: Message | None = None) -> bytes:
    message = action_pb2.ActionCommand(service_name=DOER, name=name)
    if request is not None:
        message.payload.Pack(request)
    return message.SerializeToString()


def steps(*groups: Steps) -> actions.Request:
    return actions.Request(groups=[actions.ProcessGroup(steps=[actions.ProcessStep(**step) for step in group]) for group in groups])


def said(responses: list[action_pb2.ActionResponse]) -> list[str]:
    """Each answer in a word: its text, who it is forwarded to, its failure; and its effects."""
    found = []
    for response in responses:
        kind = response.WhichOneof("response") or "nothing"
        text = {
            "reply": lambda r=response: actions.Response.FromString(r.reply.payload.value).message,
            "forward": lambda r=response: "-> " + actions.OtherRequest.FromString(r.forward.payload.value).id,
            "failure": lambda r=response: "! " + r.failure.description,
            "nothing": lambda: "",
        }[kind]()
        effects = [actions.OtherRequest.FromString(e.payload.value).id + "*" * e.synchronous for e in response.side_effects]
        found.append(" ".join([text, *effects]))
    return found


GROUPS: list[tuple[Steps, str]] = [
    ([{"reply": {"message": "x"}}], "x"),
    ([{"forward": {"id": "f"}}], "-> f"),
    ([{"effect": {"id": "e"}}], " e"),
    ([{"reply": {"message": "x"}}, {"effect": {"id": "e", "synchronous": True}}], "x e*"),
    ([{"effect": {"id": "e"}}, {"fail": {"message": "no"}}], "! no e"),
    ([], ""),
]


@pytest.mark.parametrize(("group", "expected"), GROUPS)
@pytest.mark.parametrize("shape", ["Unary", "StreamedIn", "StreamedOut", "Streamed"])
async def test_each_shape_answers_as_it_was_told(channel: grpc.aio.Channel, shape: str, group: Steps, expected: str) -> None:
    kinds = {
        "Unary": channel.unary_unary, "StreamedIn": channel.stream_unary, "StreamedOut": channel.unary_stream, "Streamed": channel.stream_stream,
    }  # fmt: skip
    name, request = f"Process{shape}", steps(group)
    method: Any = kinds[shape](f"/cloudstate.action.ActionProtocol/handle{shape}", response_deserializer=action_pb2.ActionResponse.FromString)
    sent: Any = command_of(name, request)
    if shape in ("StreamedIn", "Streamed"):
        sent = iter([command_of(name), action_pb2.ActionCommand(payload=packed(request)).SerializeToString()])
    call = method(sent, timeout=60)
    answers = [await call] if shape in ("Unary", "StreamedIn") else [answer async for answer in call]
    assert said(answers) == [expected]


def packed(message: Message) -> Any:
    holder = action_pb2.ActionCommand()
    holder.payload.Pack(message)
    return holder.payload


async def test_streams_go_both_ways_at_once(channel: grpc.aio.Channel) -> None:
    method: Any = channel.stream_stream(
        "/cloudstate.action.ActionProtocol/handleStreamed", response_deserializer=action_pb2.ActionResponse.FromString
    )
    call = method(timeout=60)
    await call.write(command_of("ProcessStreamed"))
    for text in ("one", "two"):
        await call.write(action_pb2.ActionCommand(payload=packed(steps([{"reply": {"message": text}}]))).SerializeToString())
        assert said([await call.read()]) == [text]
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF


# Definitions ------------------------------------------------------------------------------------------------------------


def test_a_class_that_does_not_fit_says_so() -> None:
    def takes_another(self: Any, request: actions.Request, context: ValueContext[values.Persisted]) -> values.Response:
        return values.Response()

    def streams(self: Any, request: actions.Request, context: ActionContext) -> actions.Response:
        return actions.Response()

    def happened(self: Any, happened: values.Persisted) -> None:
        return None

    two = {"persistence_id": "p", "descriptor": values.DESCRIPTOR, "state": values.Persisted}
    with pytest.raises(DefinitionError, match=r"Wrong.call: takes cloudstate.tck.model.action.Request, but .*ValueEntityTwo.Call takes"):
        value_entity("cloudstate.tck.model.valueentity.ValueEntityTwo", **two)(type("Wrong", (), {"call": command(takes_another)}))  # type: ignore[arg-type]
    with pytest.raises(DefinitionError, match="has no command for"):
        action(DOER, descriptor=actions.DESCRIPTOR)(type("Wrong", (), {"process_unary": command(streams)}))
    with pytest.raises(DefinitionError, match="are for event sourced entities"):
        value_entity("cloudstate.tck.model.valueentity.ValueEntityTwo", **two)(  # type: ignore[arg-type]
            type("Wrong", (BoxTwo,), {"happened": event(happened)})
        )


# Mistakes ---------------------------------------------------------------------------------------------------------------


@action("cloudstate.tck.model.action.ActionTckModel", descriptor=actions.DESCRIPTOR)
class Careless:
    """Makes one mistake in each of its methods, or tells what it sees."""

    @command
    def process_unary(self, request: actions.Request, context: ActionContext) -> Any:
        return "no message"

    @command
    async def process_streamed_in(self, requests: AsyncIterator[actions.Request], context: ActionContext) -> actions.Response:
        seen = ["".join(map(str, context.metadata("X-Step")))]
        async for _ in requests:
            seen += map(str, context.metadata("x-step"))
        return actions.Response(message=" ".join(seen))

    @command
    async def process_streamed_out(self, request: actions.Request, context: ActionContext) -> AsyncIterator[actions.Response]:
        CLOSED.clear()
        try:
            while True:
                yield actions.Response(message="on and on")
                await asyncio.sleep(0)
        finally:
            CLOSED.set()

    @command
    async def process_streamed(self, requests: AsyncIterator[actions.Request], context: ActionContext) -> AsyncIterator[Any]:
        async for _ in requests:
            yield "no message"


CLOSED = threading.Event()
"""The endless stream has been closed."""


@value_entity(BOX, persistence_id="careless", descriptor=values.DESCRIPTOR, state=values.Persisted)
class CarelessBox:
    """Stores something and then returns what is no message."""

    @command
    def process(self, request: values.Request, context: ValueContext[values.Persisted]) -> Any:
        context.update(values.Persisted(value="never"))
        return "no message"


@pytest.fixture
async def careless(serving: Callable[..., Any]) -> AsyncIterator[grpc.aio.Channel]:
    async with serving(Careless, CarelessBox) as channel:
        yield channel


async def test_an_entity_that_returns_no_message_fails_with_the_commands_id(careless: grpc.aio.Channel) -> None:
    answer = await (await Stream(careless).init()).process()
    expected = entity_pb2.Failure(command_id=1, description="'no message' is not a protobuf message")
    assert answer == value_entity_pb2.ValueEntityStreamOut(failure=expected)


@pytest.mark.parametrize(
    ("service", "name", "text"),
    [
        (DOER, "ProcessUnary", "'no message' is not a protobuf message"),
        (DOER, "Nope", f"{DOER}.Nope: this function has no such action"),
        ("a.B", "C", "a.B.C: this function has no such action"),
    ],
)
async def test_an_action_that_cannot_answer_says_why(careless: grpc.aio.Channel, service: str, name: str, text: str) -> None:
    method: Any = careless.unary_unary("/cloudstate.action.ActionProtocol/handleUnary", response_deserializer=action_pb2.ActionResponse.FromString)
    answer = await method(action_pb2.ActionCommand(service_name=service, name=name).SerializeToString(), timeout=60)
    assert answer.failure.description == text


@pytest.mark.parametrize("shape", ["StreamedIn", "Streamed"])
async def test_a_stream_that_names_no_method_says_so(careless: grpc.aio.Channel, shape: str) -> None:
    kinds = {"StreamedIn": careless.stream_unary, "Streamed": careless.stream_stream}
    method: Any = kinds[shape](f"/cloudstate.action.ActionProtocol/handle{shape}", response_deserializer=action_pb2.ActionResponse.FromString)
    call = method(iter(()), timeout=60)
    answers = [await call] if shape == "StreamedIn" else [answer async for answer in call]
    assert [answer.failure.description for answer in answers] == ["(none).(none): this function has no such action"]


async def test_metadata_is_that_of_the_newest_request_that_has_some(careless: grpc.aio.Channel) -> None:
    def stepped(step: str, **more: Any) -> bytes:
        entries = [entity_pb2.MetadataEntry(key="x-step", string_value=step)] if step else []
        return action_pb2.ActionCommand(metadata=entity_pb2.Metadata(entries=entries), **more).SerializeToString()

    method: Any = careless.stream_unary(
        "/cloudstate.action.ActionProtocol/handleStreamedIn", response_deserializer=action_pb2.ActionResponse.FromString
    )
    request = packed(actions.Request())
    sent = [stepped("call", service_name=DOER, name="ProcessStreamedIn"), *(stepped(step, payload=request) for step in ("", "two", ""))]
    answer = await method(iter(sent), timeout=60)
    assert actions.Response.FromString(answer.reply.payload.value).message == "call call two two"


async def test_a_caller_who_leaves_ends_the_generator(careless: grpc.aio.Channel) -> None:
    method: Any = careless.unary_stream("/cloudstate.action.ActionProtocol/handleStreamedOut")
    call = method(command_of("ProcessStreamedOut", actions.Request()), timeout=60)
    assert await call.read()
    call.cancel()
    assert await asyncio.to_thread(CLOSED.wait, 60)
