"""Topics through a real proxy: events posted to it reach a function, and what its methods publish reaches a receiver of CloudEvents."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import grpc
import pytest
from aiohttp import web
from google.protobuf import descriptor_pb2

from cloudstate_core.pb.cloudstate import action_pb2, entity_pb2, eventing_pb2
from kn_cloudstate.ports import free_port
from stateful_proxy.eventing.cloud_events import CloudEvent
from stateful_proxy.eventing.http_sink import HttpSink
from stateful_proxy.service import ACTION
from tests.stateful_proxy.functions import ANY, Function, spec
from tests.stateful_proxy.processes import WITHOUT, ProxyProcess, until

pytestmark = pytest.mark.skipif(WITHOUT, reason="the grpcio backend serves gRPC alone")


def topical() -> entity_pb2.EntitySpec:
    """The counting entity takes messages of a topic; so does an action, which takes any event and publishes what it answers. Another action does that
    with the entity's own events."""
    made = spec()
    files = descriptor_pb2.FileDescriptorSet.FromString(made.proto)
    own = files.file[0]
    files.file.add().MergeFromString(ANY)
    own.dependency.append("google/protobuf/any.proto")
    declare(own.service[0].method[0], "", topic="orders")
    hears = {"name": "Hear", "input_type": ".google.protobuf.Any", "output_type": ".t.M"}
    declare(own.service.add(name="Feed").method.add(**hears), "receipts", topic="news")
    declare(own.service.add(name="History").method.add(**hears), "history", event_log="p")
    made.proto = files.SerializeToString()
    for name in ("t.Feed", "t.History"):
        made.entities.add(entity_type=ACTION, service_name=name)
    return made


def declare(method: descriptor_pb2.MethodDescriptorProto, out: str, **source: str) -> None:
    eventing: Any = eventing_pb2.Eventing()
    for kind, name in source.items():
        setattr(getattr(eventing, "in"), kind, name)
    if out:
        eventing.out.topic = out
    body = eventing.SerializeToString()
    method.options.MergeFromString(b"\xca\x43" + bytes([len(body)]) + body)


class Feed(Function):
    """Answers an event with its subject."""

    def __init__(self) -> None:
        super().__init__(topical())
        self.heard: list[tuple[str, bytes]] = []

    async def start(self) -> None:
        await super().start()
        unary: Any = grpc.unary_unary_rpc_method_handler(self._hear, action_pb2.ActionCommand.FromString)
        self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(ACTION, {"handleUnary": unary}),))

    async def _hear(self, command: action_pb2.ActionCommand, context: Any) -> bytes:
        self.heard.append((command.payload.type_url, command.payload.value))
        metadata = {entry.key: entry.string_value for entry in command.metadata.entries}
        response = action_pb2.ActionResponse()
        response.reply.payload.type_url, response.reply.payload.value = "type.googleapis.com/t.M", b"\n\x01x"
        response.reply.metadata.entries.add(key="ce-subject", string_value=metadata.get("ce-subject", ""))
        return response.SerializeToString()


class Broker:
    """Takes events, after as many refusals as it is told to give."""

    def __init__(self) -> None:
        self.port = free_port()
        self.refusals: list[int] = []
        self.taken: list[tuple[str, dict[str, str], bytes]] = []
        self.asked = 0

    async def start(self) -> None:
        app = web.Application()
        app.router.add_post("/{topic:.*}", self._take)
        self.runner = web.AppRunner(app)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", self.port).start()

    async def _take(self, request: web.Request) -> web.Response:
        self.asked += 1
        if self.refusals:
            return web.Response(status=self.refusals.pop(0), text="not now")
        self.taken.append((request.path, {name.lower(): value for name, value in request.headers.items()}, await request.read()))
        return web.Response(status=202)


@pytest.fixture
async def broker() -> AsyncIterator[Broker]:
    made = Broker()
    await made.start()
    yield made
    await made.runner.cleanup()


@pytest.fixture
async def function() -> AsyncIterator[Feed]:
    made = Feed()
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def proxy(broker: Broker, function: Feed) -> AsyncIterator[ProxyProcess]:
    sink = {"K_SINK": f"http://127.0.0.1:{broker.port}/{{topic}}", "K_CE_OVERRIDES": '{"extensions": {"Team": "shop"}}'}
    made = await ProxyProcess(function.port, "native", **sink).start()
    yield made
    assert await made.end() == 0


async def post(proxy: ProxyProcess, topic: str, event_id: str, content_type: str, body: bytes, **attributes: str) -> tuple[int, str]:
    """Post an event; status and text of the answer."""
    headers = {"ce-id": event_id, "ce-source": "/shop", "ce-specversion": "1.0", "ce-type": "t.M", "content-type": content_type}
    headers |= {f"ce-{name}": value for name, value in attributes.items()}
    async with aiohttp.ClientSession() as client, client.post(f"http://127.0.0.1:{proxy.data}/topics/{topic}", data=body, headers=headers) as answer:
        return answer.status, await answer.text()


async def test_an_entity_counts_an_event_once_however_often_it_comes(proxy: ProxyProcess) -> None:
    for event_id in ("1", "1", "2", "1"):
        assert await post(proxy, "orders", event_id, "application/protobuf", b"\n\x03ann") == (204, "")
    assert await proxy.channel.unary_unary("/t.S/Count")(b"\n\x03ann", timeout=30) == b"3"
    assert proxy.figure("cloudstate_topic_events_handled_total") == 4


async def test_json_of_the_methods_own_message_is_that_message(proxy: ProxyProcess) -> None:
    assert await post(proxy, "orders", "1", "application/json", b'{"id": "ann"}') == (204, "")
    assert await proxy.channel.unary_unary("/t.S/Count")(b"\n\x03ann", timeout=30) == b"2"
    status, text = await post(proxy, "orders", "2", "application/json", b'{"name": "ann"}')
    assert status == 400
    assert 'no field named "name"' in text


async def test_an_actions_answer_is_published_with_its_metadata(proxy: ProxyProcess, broker: Broker, function: Feed) -> None:
    assert await post(proxy, "news", "1", "application/json", b'{"a": 1}', subject="zo%C3%AB") == (204, "")
    assert function.heard == [("json.cloudstate.io/t.M", b'\n\x08{"a": 1}')]
    [(path, headers, body)] = broker.taken
    assert (path, body) == ("/receipts", b"\n\x01x")
    expected = {
        "ce-subject": "zo%C3%AB", "ce-source": "t.Feed", "ce-type": "t.M", "ce-specversion": "1.0", "ce-topic": "receipts", "ce-team": "shop",
        "content-type": "application/protobuf",
    }  # fmt: skip
    assert {name: headers[name] for name in expected} == expected
    assert headers["ce-id"]
    assert headers["ce-time"].endswith("Z")


async def test_events_of_entities_are_published_by_who_subscribes_to_them(proxy: ProxyProcess, broker: Broker) -> None:
    broker.refusals = [503]
    assert await proxy.channel.unary_unary("/t.S/Count")(b"\n\x03ann", timeout=30) == b"1"
    await until(lambda: bool(broker.taken), "the event is published")
    [(path, headers, _)] = broker.taken
    assert (path, headers["ce-source"], headers["ce-subject"]) == ("/history", "t.History", "ann")


async def test_a_direct_callers_answer_is_published_too(proxy: ProxyProcess, broker: Broker) -> None:
    broker.refusals = [503, 429]
    assert await proxy.channel.unary_unary("/t.Feed/Hear")(b"", timeout=30) == b"\n\x01x"
    assert [path for path, _, _ in broker.taken] == ["/receipts"]
    assert broker.asked == 3


async def test_a_broker_that_refuses_is_told_to_who_sent_the_event(proxy: ProxyProcess, broker: Broker) -> None:
    broker.refusals = [400]
    status, text = await post(proxy, "news", "1", "text/plain", b"hi")
    assert status == 503
    assert "/t.Feed/Hear: was executed, but its answer could not be published to topic 'receipts'" in text
    assert "status 400: not now" in text
    assert proxy.figure("cloudstate_publication_failures_total") == 1


async def test_a_structured_event_is_taken_and_a_wrong_one_is_not(proxy: ProxyProcess, function: Feed) -> None:
    event: dict[str, Any] = {"id": "1", "source": "/shop", "specversion": "1.0", "type": "t.E", "datacontenttype": "text/plain", "data": "hi"}
    headers = {"content-type": "application/cloudevents+json"}
    async with aiohttp.ClientSession() as client:
        async with client.post(f"http://127.0.0.1:{proxy.data}/topics/news", json=event, headers=headers) as answer:
            assert answer.status == 204
        del event["id"]
        async with client.post(f"http://127.0.0.1:{proxy.data}/topics/news", json=event, headers=headers) as answer:
            assert (answer.status, await answer.text()) == (400, "attribute id: must be there and not be empty")
    assert function.heard == [("p.cloudstate.io/string", b"\n\x02hi")]


async def test_without_a_sink_a_function_that_publishes_is_told(function: Feed) -> None:
    proxy = await ProxyProcess(function.port, "native").spawn()
    try:
        await proxy.ready(503, "t.Feed.Hear: publishes to topic 'receipts', and no sink is set")
        await until(lambda: any("no sink is set" in told for told in function.reported), "the function is told")
    finally:
        await proxy.end()


@pytest.mark.parametrize(
    ("address", "problem"),
    [("http://127.0.0.1:{closed}/x", "Cannot connect"), ("http://127.0.0.1:{open}/x\n", ""), ("nonsense", "nonsense")],
)
async def test_a_publication_always_ends(broker: Broker, monkeypatch: pytest.MonkeyPatch, address: str, problem: str) -> None:
    monkeypatch.setattr("stateful_proxy.eventing.http_sink.PAUSES", (0.0, 0.0))
    done: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    loop = asyncio.get_running_loop()
    sink = HttpSink(address.format(closed=free_port(), open=broker.port), {}, "", loop.call_soon_threadsafe)
    event = CloudEvent({"id": "1", "source": "s", "specversion": "1.0", "type": "t"}, "text/plain", json.dumps({}).encode())
    sink.publish("a", event, done.set_result)
    assert problem in await asyncio.wait_for(done, 30)
    sink.stop()
