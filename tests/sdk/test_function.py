"""A user function as a stateful proxy sees it: discovery, and an entity's stream from init to restart."""

from __future__ import annotations

import asyncio
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
import pytest
from cloudstate_sdk.pb.cloudstate import entity_pb2
from cloudstate_sdk.pb.cloudstate import event_sourced_pb2 as es
from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool
from google.protobuf.message import Message

from kn_cloudstate.ports import free_port

SERVICE = "com.example.shoppingcart.ShoppingCart"
ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


def packed(message: Message) -> any_pb2.Any:
    return any_pb2.Any(type_url=f"type.googleapis.com/{message.DESCRIPTOR.full_name}", value=message.SerializeToString())


class Stream:
    """One entity's stream, driven as the proxy drives it."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        method: Any = channel.stream_stream(
            "/cloudstate.eventsourced.EventSourced/handle", es.EventSourcedStreamIn.SerializeToString, es.EventSourcedStreamOut.FromString
        )
        self.call, self._commands = method(timeout=60), 0

    async def init(self, entity_id: str = "ann", snapshot: Message | None = None, sequence: int = 0) -> None:
        init = es.EventSourcedInit(service_name=SERVICE, entity_id=entity_id)
        if snapshot is not None:
            init.snapshot.snapshot_sequence = sequence
            init.snapshot.snapshot.CopyFrom(packed(snapshot))
        await self.call.write(es.EventSourcedStreamIn(init=init))

    async def replay(self, sequence: int, event: Message) -> None:
        await self.call.write(es.EventSourcedStreamIn(event=es.EventSourcedEvent(sequence=sequence, payload=packed(event))))

    async def command(self, name: str, request: Message) -> es.EventSourcedStreamOut:
        return await self.raw(name, packed(request))

    async def raw(self, name: str, payload: any_pb2.Any) -> es.EventSourcedStreamOut:
        self._commands += 1
        command = entity_pb2.Command(entity_id="ann", id=self._commands, name=name, payload=payload)
        await self.call.write(es.EventSourcedStreamIn(command=command))
        answer: es.EventSourcedStreamOut = await self.call.read()
        return answer


def add(sample: Any, product: str, quantity: int) -> Message:
    return sample.api.AddLineItem(user_id="ann", product_id=product, name=product, quantity=quantity)  # type: ignore[no-any-return]


async def contents(stream: Stream, sample: Any) -> dict[str, int]:
    answer = await stream.command("GetCart", sample.api.GetShoppingCart(user_id="ann"))
    cart = sample.api.Cart.FromString(answer.reply.client_action.reply.payload.value)
    return {item.product_id: item.quantity for item in cart.items}


async def test_discovery_describes_the_service_and_all_that_it_imports(serving: Callable[..., Any], sample: Any) -> None:
    async with serving(sample.Cart) as channel:
        discover: Any = channel.unary_unary(
            "/cloudstate.EntityDiscovery/discover", entity_pb2.ProxyInfo.SerializeToString, entity_pb2.EntitySpec.FromString
        )
        spec = await discover(entity_pb2.ProxyInfo(protocol_minor_version=2), timeout=60)
    (entity,) = spec.entities
    assert (entity.entity_type, entity.service_name) == ("cloudstate.eventsourced.EventSourced", SERVICE)
    assert entity.persistence_id == "shopping-cart"
    assert (spec.service_info.protocol_major_version, spec.service_info.protocol_minor_version) == (0, 2)
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(spec.proto).file:
        pool.Add(file)
    assert "AddItem" in pool.FindServiceByName(SERVICE).methods_by_name


async def test_a_reported_error_is_logged(serving: Callable[..., Any], sample: Any, caplog: pytest.LogCaptureFixture) -> None:
    from google.protobuf.empty_pb2 import Empty

    async with serving(sample.Cart) as channel:
        report: Any = channel.unary_unary("/cloudstate.EntityDiscovery/reportError", entity_pb2.UserFunctionError.SerializeToString, Empty.FromString)
        await report(entity_pb2.UserFunctionError(message="no such entity type"), timeout=60)
    assert "no such entity type" in caplog.text


async def test_a_command_answers_with_its_events(serving: Callable[..., Any], sample: Any) -> None:
    async with serving(sample.Cart) as channel:
        stream = Stream(channel)
        await stream.init()
        answer = await stream.command("AddItem", add(sample, "pear", 2))
        assert answer.reply.command_id == 1
        (event,) = answer.reply.events
        assert event.type_url == "type.googleapis.com/com.example.shoppingcart.persistence.ItemAdded"
        assert sample.domain.ItemAdded.FromString(event.value).item.quantity == 2
        assert await contents(stream, sample) == {"pear": 2}


async def test_an_entity_is_rebuilt_from_snapshot_and_events(serving: Callable[..., Any], sample: Any) -> None:
    item = sample.domain.LineItem
    async with serving(sample.Cart) as channel:
        stream = Stream(channel)
        await stream.init(snapshot=sample.domain.Cart(items=[item(productId="pear", name="pear", quantity=3)]), sequence=7)
        await stream.replay(8, sample.domain.ItemAdded(item=item(productId="fig", name="fig", quantity=1)))
        await stream.replay(9, sample.domain.ItemAdded(item=item(productId="pear", name="pear", quantity=1)))
        assert await contents(stream, sample) == {"pear": 4, "fig": 1}


async def test_a_snapshot_comes_with_every_fiftieth_event_counting_replayed_ones(serving: Callable[..., Any], sample: Any) -> None:
    async with serving(sample.Cart) as channel:
        stream = Stream(channel)
        await stream.init()
        for sequence in range(1, 49):
            item = sample.domain.LineItem(productId="pear", name="pear", quantity=1)
            await stream.replay(sequence, sample.domain.ItemAdded(item=item))
        taken = [(await stream.command("AddItem", add(sample, "pear", 1))).reply for _ in range(53)]
    with_snapshot = [49 + n for n, reply in enumerate(taken) if reply.HasField("snapshot")]
    assert with_snapshot == [50, 100]
    saved = sample.domain.Cart.FromString(taken[1].snapshot.value)
    assert [(i.productId, i.quantity) for i in saved.items] == [("pear", 50)]


async def test_a_failed_command_stores_nothing_and_leaves_the_entity_usable(serving: Callable[..., Any], sample: Any) -> None:
    async with serving(sample.Cart) as channel:
        stream = Stream(channel)
        await stream.init()
        failed = (await stream.command("AddItem", add(sample, "pear", 0))).reply
        assert "above zero" in failed.client_action.failure.description
        assert not failed.client_action.failure.restart
        assert not failed.events
        assert await contents(stream, sample) == {}


@pytest.fixture
def faulty(sample: Any) -> type:
    """A cart whose handlers go wrong after they emitted, or by themselves; one of them is asynchronous."""
    from cloudstate_sdk import Context, event_sourced
    from cloudstate_sdk import command as as_command
    from cloudstate_sdk import event as as_event

    api, domain = sample.api, sample.domain

    class Faulty:
        def __init__(self, entity_id: str) -> None:
            self.count = 0

        def add_item(self, request: Any, context: Context) -> Any:
            context.emit(domain.ItemAdded(item=domain.LineItem(productId="x", name="x", quantity=1)))
            context.fail("changed my mind")

        def remove_item(self, request: Any, context: Context) -> Any:
            raise RuntimeError("broken")

        async def get_cart(self, request: Any, context: Context) -> Any:
            return api.Cart(items=[api.LineItem(product_id="count", name="count", quantity=self.count)])

        def item_added(self, event: Any) -> None:
            self.count += 1

    Faulty.add_item.__annotations__["request"] = api.AddLineItem
    Faulty.remove_item.__annotations__["request"] = api.RemoveLineItem
    Faulty.get_cart.__annotations__["request"] = api.GetShoppingCart
    Faulty.item_added.__annotations__["event"] = domain.ItemAdded
    for handler in (Faulty.add_item, Faulty.remove_item, Faulty.get_cart):
        handler.__annotations__["context"] = Context
        as_command(handler)
    as_event(Faulty.item_added)
    return event_sourced(SERVICE, persistence_id="faulty", descriptor=api.DESCRIPTOR)(Faulty)


async def test_a_failure_after_an_event_asks_for_a_restart(serving: Callable[..., Any], sample: Any, faulty: type) -> None:
    async with serving(faulty) as channel:
        stream = Stream(channel)
        await stream.init()
        reply = (await stream.command("AddItem", add(sample, "x", 1))).reply
        assert reply.client_action.failure.description == "changed my mind"
        assert reply.client_action.failure.restart
        assert not reply.events


async def test_a_request_that_does_not_parse_fails_the_command_alone(serving: Callable[..., Any], sample: Any) -> None:
    async with serving(sample.Cart) as channel:
        stream = Stream(channel)
        await stream.init()
        await stream.command("AddItem", add(sample, "pear", 2))
        answer = await stream.raw("AddItem", any_pb2.Any(value=b"\xff"))
        failure = answer.reply.client_action.failure
        assert not answer.reply.events
        assert failure.description.startswith("AddItem: the request is not a com.example.shoppingcart.AddLineItem: ")
        assert not failure.restart
        assert await contents(stream, sample) == {"pear": 2}


async def test_an_error_of_a_handler_fails_the_entity(serving: Callable[..., Any], sample: Any, faulty: type) -> None:
    async with serving(faulty) as channel:
        stream = Stream(channel)
        await stream.init()
        assert await contents(stream, sample) == {"count": 0}
        answer = await stream.command("RemoveItem", sample.api.RemoveLineItem(user_id="ann", product_id="x"))
        assert answer.WhichOneof("message") == "failure"
        assert (answer.failure.command_id, answer.failure.description) == (2, "broken")


async def test_a_stream_that_begins_without_init_is_refused(serving: Callable[..., Any], sample: Any) -> None:
    async with serving(sample.Cart) as channel:
        stream = Stream(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await contents(stream, sample)
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_entities_do_not_share_state(serving: Callable[..., Any], sample: Any) -> None:
    async with serving(sample.Cart) as channel:
        first, second = Stream(channel), Stream(channel)
        await first.init("ann")
        await second.init("bob")
        await first.command("AddItem", add(sample, "pear", 1))
        assert await contents(second, sample) == {}


def test_a_class_that_does_not_fit_its_service_says_so(sample: Any) -> None:
    from cloudstate_sdk import Function, event_sourced
    from cloudstate_sdk.definition import DefinitionError

    class Empty:
        pass

    def decorate(service: str) -> type:
        return event_sourced(service, persistence_id="e", descriptor=sample.api.DESCRIPTOR)(Empty)

    with pytest.raises(DefinitionError, match=r"Empty: has no command for AddItem, GetCart, RemoveItem"):
        decorate(SERVICE)
    with pytest.raises(DefinitionError, match=r"does not define service com\.example\.Other"):
        decorate("com.example.Other")
    with pytest.raises(DefinitionError, match=r"Empty: is not an entity"):
        Function(Empty)


@pytest.mark.usefixtures("transport")
def test_the_sample_listens_on_port_and_ends_on_sigterm() -> None:
    port = free_port()
    environment = {**os.environ, "PORT": str(port), "PYTHONPATH": str(ROOT / "sdk/python")}
    process = subprocess.Popen([sys.executable, "cart.py"], cwd=ROOT / "samples/shopping-cart", env=environment)
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            grpc.channel_ready_future(channel).result(60)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()


TOLD_TO_END_AS_IT_OPENS = """
import os, signal
import cart
from cloudstate_sdk import Function, serving

start = serving.start

async def start_and_be_told(*arguments):
    started = await start(*arguments)
    os.kill(os.getpid(), signal.SIGTERM)
    return started

serving.start = start_and_be_told
Function(cart.Cart).run(port=0)
"""


@pytest.mark.usefixtures("transport")
def test_a_function_that_is_told_to_end_as_soon_as_its_port_is_open_ends_well() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "sdk/python")}
    command = [sys.executable, "-c", TOLD_TO_END_AS_IT_OPENS]
    assert subprocess.run(command, cwd=ROOT / "samples/shopping-cart", env=environment, timeout=60, check=False).returncode == 0


@pytest.mark.usefixtures("transport")
async def test_entities_that_wake_all_at_once_are_all_taken(sample: Any) -> None:
    """A proxy opens the streams of thousands of entities while the function is busy: none may be lost for that."""
    from cloudstate_sdk import Function

    server, port = await Function(sample.Cart).start("127.0.0.1", 0)
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        discover: Any = channel.unary_unary("/cloudstate.EntityDiscovery/discover")
        waiting = [discover.future(b"", timeout=60) for _ in range(4000)]  # nothing is awaited: the loop takes none of them yet
        statuses = await asyncio.to_thread(lambda: [future.code() for future in waiting])
    await server.stop(None)
    assert set(statuses) == {grpc.StatusCode.OK}
