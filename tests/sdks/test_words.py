"""A function without state on npm `cloudstate`: the stateless functions of protocol 0.1, which 0.2 calls actions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest

from tests.sdks.conftest import Start, wanted
from tests.sdks.functions import message
from tests.stateful_proxy.processes import BACKENDS, ProxyProcess

pytestmark = [pytest.mark.timeout(900), pytest.mark.skipif("node" not in wanted(), reason="CLOUDSTATE_SDKS leaves node out")]


def text(said: str) -> bytes:
    return bytes(message("Text")(text=said).SerializeToString())


def said(answer: bytes) -> str:
    return str(message("Text").FromString(answer).text)


@pytest.fixture(params=BACKENDS)
async def proxy(request: pytest.FixtureRequest, start: Start) -> AsyncIterator[ProxyProcess]:
    """A proxy before the function."""
    function = await asyncio.to_thread(start, "node", "words")
    proxy = await ProxyProcess(function.port, request.param).start()
    yield proxy
    await proxy.channel.close()
    await proxy.end()


async def test_one_answer(proxy: ProxyProcess) -> None:
    upper = proxy.channel.unary_unary("/shop.Words/Upper")
    assert [said(answer) for answer in await asyncio.gather(*(upper(text(f"tea {n}"), timeout=120) for n in range(50)))] == [
        f"TEA {n}" for n in range(50)
    ]


async def test_several_answers(proxy: ProxyProcess) -> None:
    call = proxy.channel.unary_stream("/shop.Words/Letters")(text("milk"), timeout=120)
    assert [said(answer) async for answer in call] == ["m", "i", "l", "k"]
    assert await call.code() == grpc.StatusCode.OK


async def test_a_conversation(proxy: ProxyProcess) -> None:
    call = proxy.channel.stream_stream("/shop.Words/Echo")(timeout=120)
    for word in ("one", "two", "three"):
        await call.write(text(word))
        assert said(await call.read()) == word
    await call.write(text("bye"))
    assert await call.read() is grpc.aio.EOF
    assert await call.code() == grpc.StatusCode.OK
