"""A function in a test, under a real proxy."""

from __future__ import annotations

import asyncio
import json
import pathlib
import urllib.request
from typing import Any

import grpc
import pytest
from cloudstate_sdk import ActionContext, CrdtContext, Function, GCounter, StreamedContext, action, command, crdt_entity
from cloudstate_sdk.testkit.proxied import ProxyError, proxied

from tests.tck.pb.cloudstate.tck.model import action_pb2 as actions
from tests.tck.pb.cloudstate.tck.model import crdt_pb2 as crdts
from tests.tck.sdk.function import Doer


@pytest.mark.usefixtures("transport")
async def test_the_cart_is_called_over_grpc_and_http(sample: Any) -> None:
    api = sample.api
    async with proxied(sample.Cart) as running:
        for user, quantity in (("ann", 2), ("bob", 5), ("ann", 1)):
            await running.call(sample.Cart, "AddItem", api.AddLineItem(user_id=user, product_id="pear", name="Pear", quantity=quantity))
        cart = await running.call(sample.Cart, "GetCart", api.GetShoppingCart(user_id="ann"))
        assert [(item.product_id, item.quantity) for item in cart.items] == [("pear", 3)]

        def get() -> Any:
            with urllib.request.urlopen(f"{running.http}/carts/bob", timeout=60) as answer:
                return json.load(answer)

        assert (await asyncio.to_thread(get))["items"][0]["quantity"] == 5
        with pytest.raises(grpc.aio.AioRpcError, match="it must be above zero"):
            await running.call(sample.Cart, "AddItem", api.AddLineItem(user_id="ann", product_id="pear"))
        assert not running.function.reports


async def test_what_the_proxy_keeps_outlives_it(sample: Any, tmp_path: pathlib.Path) -> None:
    api, settings = sample.api, {"CLOUDSTATE_JOURNAL": f"sqlite:{tmp_path}/journal"}
    async with proxied(sample.Cart, settings=settings) as running:
        await running.call(sample.Cart, "AddItem", api.AddLineItem(user_id="ann", product_id="fig", name="Fig", quantity=1))
    async with proxied(sample.Cart, settings=settings) as running:
        cart = await running.call(sample.Cart, "GetCart", api.GetShoppingCart(user_id="ann"))
    assert [item.product_id for item in cart.items] == ["fig"]


async def test_an_action_sees_the_callers_headers() -> None:
    @action("cloudstate.tck.model.action.ActionTwo", descriptor=actions.DESCRIPTOR)
    class Greeter:
        @command
        def call(self, request: actions.OtherRequest, context: ActionContext) -> actions.Response:
            return actions.Response(message=f"hello {context.metadata('x-user')[0]}")

    async with proxied(Greeter) as running:
        reply = await running.call(Greeter, "Call", actions.OtherRequest(), {"x-user": "ann"})
    assert reply.message == "hello ann"


async def test_a_bad_forward_is_reported(sample: Any) -> None:
    forward = actions.ProcessStep(forward=actions.Forward(id="x"))
    async with proxied(Doer) as running:
        with pytest.raises(grpc.aio.AioRpcError):
            await running.call(Doer, "ProcessUnary", actions.Request(groups=[actions.ProcessGroup(steps=[forward])]))
        async with asyncio.timeout(60):
            while not running.function.reports:
                await asyncio.sleep(0.01)
        assert "forward to cloudstate.tck.model.action.ActionTwo.Call: the function has no such method" in running.function.reports[0]


async def test_a_wrong_setting_is_told_with_the_proxys_own_words(sample: Any) -> None:
    with pytest.raises(ProxyError, match=r"(?s)the proxy has ended with exit code 1.*CLOUDSTATE_SHARDS='many'"):
        async with proxied(sample.Cart, settings={"CLOUDSTATE_SHARDS": "many"}):
            pytest.fail("it must not start")


async def test_a_function_that_the_proxy_refuses_is_told_at_once(sample: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    discover = Function._discover

    async def wrong(self: Function, info: Any, context: Any) -> Any:
        spec = await discover(self, info, context)
        spec.entities[0].service_name = "example.Missing"
        return spec

    monkeypatch.setattr(Function, "_discover", wrong)
    with pytest.raises(ProxyError, match=r"the proxy does not serve this function: .*example\.Missing"):
        async with proxied(sample.Cart):
            pytest.fail("it must not start")


async def test_a_missing_proxy_is_told_with_what_to_install(sample: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ProxyError, match=r"^the proxy is not installed; it comes with `pip install cloudstate-sdk\[proxy\]`$"):
        async with proxied(sample.Cart):
            pytest.fail("it must not start")


@crdt_entity("cloudstate.tck.model.crdt.CrdtTckModel", persistence_id="hits", descriptor=crdts.DESCRIPTOR, crdt=GCounter)
class Hits:
    """Counts its commands."""

    @command
    def process(self, request: crdts.Request, context: CrdtContext[GCounter]) -> crdts.Response:
        context.state.increment()
        context.reply_metadata("x-hits", str(context.state.value))
        return crdts.Response(state=crdts.State(gcounter=crdts.GCounterValue(value=context.state.value)))

    @command
    def process_streamed(self, request: crdts.StreamedRequest, context: StreamedContext[GCounter]) -> crdts.Response:
        context.on_change(lambda change: crdts.Response(state=crdts.State(gcounter=crdts.GCounterValue(value=change.state.value))))
        return crdts.Response()


@pytest.mark.usefixtures("transport")
async def test_a_replicated_value_is_streamed_and_outlives_its_proxy(tmp_path: pathlib.Path) -> None:
    settings = {"CLOUDSTATE_JOURNAL": f"sqlite:{tmp_path}/journal"}
    async with proxied(Hits, settings=settings) as running:
        watch: Any = running.channel.unary_stream(
            "/cloudstate.tck.model.crdt.CrdtTckModel/ProcessStreamed", crdts.StreamedRequest.SerializeToString, crdts.Response.FromString
        )
        watching = watch(crdts.StreamedRequest(id="a"), timeout=60)
        assert await watching.read() == crdts.Response()
        method: Any = running.channel.unary_unary("/cloudstate.tck.model.crdt.CrdtTckModel/Process", crdts.Request.SerializeToString)
        for number in (1, 2):
            call = method(crdts.Request(id="a"), timeout=60)
            await call
            assert dict(await call.initial_metadata())["x-hits"] == str(number)
            assert (await watching.read()).state.gcounter.value == number
        watching.cancel()
    async with proxied(Hits, settings=settings) as running:
        assert (await running.call(Hits, "Process", crdts.Request(id="a"))).state.gcounter.value == 3
