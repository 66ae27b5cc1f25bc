"""Conformance: verifying proxy test: event log subscriptions."""

from __future__ import annotations

import pytest
from google.protobuf import any_pb2, empty_pb2
from google.protobuf.message import Message

from cloudstate_core.pb.cloudstate import action_pb2, entity_pb2
from tests.tck import scripted
from tests.tck.client import Client
from tests.tck.messages import Action as Ac
from tests.tck.messages import EventSourced as Es
from tests.tck.messages import forward, packed, reply
from tests.tck.pb.cloudstate.tck.model import eventlogeventing_pb2 as pb
from tests.tck.scripted import UNARY, Call, ScriptedFunction

pytestmark = pytest.mark.asyncio(loop_scope="session")

MODEL, ONE, TWO = (
    f"cloudstate.tck.model.eventlogeventing.{n}" for n in ("EventLogSubscriberModel", "EventSourcedEntityOne", "EventSourcedEntityTwo")
)
EVENT_LOG_ONE, EVENT_LOG_TWO = "eventlogeventing-one", "eventlogeventing-two"
CONTENT_TYPE = "application/vnd.cloudstate.protobuf.any"


async def opened(function: ScriptedFunction, service: str, key: str, name: str, request: Message) -> Call:
    """A new entity gets its first command."""
    stream = await function.call(scripted.EVENT_SOURCED)
    await stream.expect(Es.init(service, key))
    await stream.expect(Es.command(key, 1, name, request))
    return stream


async def emitted(function: ScriptedFunction, client: Client, key: str, event: pb.EventOne) -> None:
    """An entity stores an event."""
    request = pb.EmitEventRequest(id=key, event_one=event)
    answer = client.unary(f"/{ONE}/EmitEvent", request, empty_pb2.Empty)
    stream = await opened(function, ONE, key, "EmitEvent", request)
    await stream.send(Es.reply(1, reply(empty_pb2.Empty()), [event]))
    assert await answer == empty_pb2.Empty()


def texts(metadata: entity_pb2.Metadata) -> dict[str, str]:
    """Entries by name in lower case; an entry that comes twice is a mistake."""
    names = [entry.key.lower() for entry in metadata.entries]
    assert len(names) == len(set(names)), names
    return {entry.key.lower(): entry.string_value for entry in metadata.entries}


async def consumed(call: Call, name: str, payload: any_pb2.Any, source: str, key: str) -> None:
    """The subscriber gets an event, with metadata that says where it comes from."""
    command = await call.take(action_pb2.ActionCommand)
    found = texts(command.metadata)
    command.ClearField("metadata")
    assert command == action_pb2.ActionCommand(service_name=MODEL, name=name, payload=payload)
    assert found.pop("ce-id"), "it has an id"
    found.pop("ce-time", None)
    assert found == {
        "ce-source": source,
        "ce-specversion": "1.0",
        "ce-type": payload.type_url,
        "ce-subject": key,
        "content-type": CONTENT_TYPE,
    }
    await call.expect_end()


async def test_consume_an_event(function: ScriptedFunction, client: Client, key: str) -> None:
    event = pb.EventOne(step=pb.ProcessStep(reply=pb.Reply(message="some message")))
    await emitted(function, client, key, event)
    call = await function.call(UNARY)
    await consumed(call, "ProcessEventOne", packed(event), EVENT_LOG_ONE, key)
    await call.close(Ac.response(reply(pb.Response(id=key, message="some message"))))


async def test_forward_a_consumed_event(function: ScriptedFunction, client: Client, key: str) -> None:
    event = pb.EventOne(step=pb.ProcessStep(forward=pb.Forward(message="some message")))
    await emitted(function, client, key, event)
    call = await function.call(UNARY)
    await consumed(call, "ProcessEventOne", packed(event), EVENT_LOG_ONE, key)
    onward = pb.EffectRequest(id=key, message="some message")
    await call.close(Ac.response(forward((MODEL, "Effect"), onward)))
    call = await function.call(UNARY)
    await call.expect(Ac.command(MODEL, "Effect", onward))
    await call.expect_end()
    await call.close(Ac.response(reply(pb.Response(id=key, message="some message"))))


async def test_process_json_events(function: ScriptedFunction, client: Client, key: str) -> None:
    """The payload of a method that takes google.protobuf.Any is the stored event itself, not wrapped once more."""
    request = pb.JsonEvent(id=key, message="some message")
    answer = client.unary(f"/{TWO}/EmitJsonEvent", request, empty_pb2.Empty)
    stream = await opened(function, TWO, key, "EmitJsonEvent", request)
    text = b'{"message":"some message"}'
    event = any_pb2.Any(type_url="json.cloudstate.io/JsonEvent", value=b"\x0a" + bytes([len(text)]) + text)
    stored = Es.reply(1, reply(empty_pb2.Empty()))
    stored.reply.events.append(event)
    await stream.send(stored)
    assert await answer == empty_pb2.Empty()
    call = await function.call(UNARY)
    await consumed(call, "ProcessAnyEvent", event, EVENT_LOG_TWO, key)
    await call.close(Ac.response(reply(pb.Response(id=key, message="some message"))))
