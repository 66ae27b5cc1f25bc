"""An event sourced cart on SDKs that others published, behind the real proxy on an SQLite journal."""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
import signal
import sqlite3
from collections.abc import AsyncIterator, Awaitable

import grpc
import grpc.aio
import pytest

from tests.sdks.conftest import Start, wanted
from tests.sdks.functions import FunctionProcess, message
from tests.stateful_proxy.processes import BACKENDS, ProxyProcess, until

SNAPSHOT_EVERY = 3
CALL_LIMIT = 120.0
pytestmark = pytest.mark.timeout(900)
"""The first test on an SDK installs it."""


class Shop:
    """A cart function, a proxy before it, and a client."""

    def __init__(self, function: FunctionProcess, backend: str, journal: pathlib.Path) -> None:
        self.function, self.backend, self.journal = function, backend, journal

    async def open(self, **settings: str) -> Shop:
        """Start a proxy on the journal."""
        settings = {"CLOUDSTATE_JOURNAL": f"sqlite:{self.journal}", **settings}
        self.proxy = await ProxyProcess(self.function.port, self.backend, **settings).start()
        return self

    async def close(self, number: int = signal.SIGTERM) -> None:
        """End the proxy."""
        await self.proxy.channel.close()
        await self.proxy.end(number)

    async def call(self, method: str, request: bytes) -> bytes:
        return bytes(await self.proxy.channel.unary_unary(f"/shop.Cart/{method}")(request, timeout=CALL_LIMIT))

    async def add(self, owner: str, product: str, quantity: int) -> None:
        assert await self.call("AddItem", message("Add")(owner=owner, product=product, quantity=quantity).SerializeToString()) == b""

    async def add_while_it_is_away(self, owner: str, product: str, quantity: int) -> None:
        """Add while the function may be away. A command waits for it for a while; one that is told `not executed` is sent again."""
        while True:
            try:
                return await self.add(owner, product, quantity)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE or ": not executed: " not in (error.details() or ""):
                    raise

    async def remove(self, owner: str, product: str) -> None:
        assert await self.call("RemoveItem", message("Remove")(owner=owner, product=product).SerializeToString()) == b""

    async def contents(self, owner: str) -> dict[str, int]:
        return self._items(await self.call("GetCart", message("Get")(owner=owner).SerializeToString()))

    def _items(self, contents: bytes) -> dict[str, int]:
        return {item.product: item.quantity for item in message("Contents").FromString(contents).items}

    async def give(self, owner: str, to: str, product: str) -> None:
        assert await self.call("GiveItem", message("Gift")(owner=owner, to=to, product=product).SerializeToString()) == b""

    async def peek(self, owner: str, at: str) -> dict[str, int]:
        return self._items(await self.call("PeekAt", message("Peek")(owner=owner, at=at).SerializeToString()))

    async def forgotten(self) -> None:
        """Wait until no entity is in memory."""
        await until(lambda: '"active": 0' in self.proxy.page("/entities")[1], "no entity is in memory")

    def stored(self, owner: str) -> tuple[int, int]:
        """Sequence numbers that the journal has for a cart: its last event's and its snapshot's. Only without a proxy, which locks it."""
        with contextlib.closing(sqlite3.connect(self.journal)) as connection:
            found: tuple[int, int] = connection.execute("SELECT seq, snapshot_seq FROM entity WHERE id = ?", (owner,)).fetchone()
        return found


@pytest.fixture
def backend() -> str:
    """The proxy's choice, where a test does not try them all."""
    return "auto"


@pytest.fixture(params=wanted())
def sdk(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def shop(start: Start, sdk: str, backend: str, tmp_path: pathlib.Path) -> AsyncIterator[Shop]:
    """Not open yet."""
    function = await asyncio.to_thread(start, sdk, "cart")
    shop = Shop(function, backend, tmp_path / "journal.sqlite")
    yield shop
    await shop.close()


async def failure(call: Awaitable[object]) -> tuple[grpc.StatusCode, str]:
    """How a call fails."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), str(caught.value.details())


@pytest.mark.parametrize("backend", BACKENDS)
async def test_commands(shop: Shop, sdk: str) -> None:
    await shop.open()
    assert await shop.contents("ann") == {}
    await shop.add("ann", "tea", 2)
    await shop.add("ann", "milk", 1)
    await shop.add("ann", "tea", 3)
    assert await shop.contents("ann") == {"tea": 5, "milk": 1}
    await shop.remove("ann", "milk")
    assert await shop.contents("ann") == {"tea": 5}
    assert await shop.contents("bob") == {}

    quoted = "['{}']" if sdk == "python" else "{}"  # this SDK gives the text of its list of errors
    refused = grpc.StatusCode.UNKNOWN
    assert await failure(shop.add("ann", "tea", 0)) == (refused, quoted.format("cannot add 0 of tea"))
    assert await failure(shop.remove("ann", "milk")) == (refused, quoted.format("milk is not in the cart"))
    assert (await failure(shop.call("GetCart", b"")))[0] == grpc.StatusCode.INVALID_ARGUMENT
    code, text = await failure(shop.add("ann", "crash", 1))
    assert code == grpc.StatusCode.UNKNOWN, text
    assert await shop.contents("ann") == {"tea": 5}
    await shop.add("ann", "tea", 1)
    assert await shop.contents("ann") == {"tea": 6}


async def test_side_effects_and_forwards(shop: Shop, sdk: str) -> None:
    await shop.open()
    await shop.add("ann", "tea", 1)
    for _ in range(3):
        await shop.give("ann", "bob", "tea")
    assert await shop.contents("ann") == {}
    assert await shop.contents("bob") == ({} if sdk.startswith("java") else {"tea": 3})  # that SDK loses its side effects on their way here
    await shop.add("bob", "milk", 1)
    assert (await shop.peek("ann", "bob"))["milk"] == 1


async def test_an_entity_comes_back_from_its_snapshot_and_events(shop: Shop, sdk: str) -> None:
    await shop.open(CLOUDSTATE_PASSIVATION_TIMEOUT="100ms")
    for number in range(1, 8):
        await shop.add("ann", f"product {number}", number)
    await shop.remove("ann", "product 2")
    expected = {f"product {number}": number for number in (1, 3, 4, 5, 6, 7)}
    for _ in range(2):
        await shop.forgotten()
        assert await shop.contents("ann") == expected
        await shop.add("ann", "product 1", 10)
        expected["product 1"] += 10
    await shop.forgotten()
    await shop.close()
    sequence, snapshot = shop.stored("ann")
    assert sequence == 10
    if sdk == "python":  # it cannot read the snapshots that it gives, so none is kept
        assert snapshot == 0
    else:
        assert SNAPSHOT_EVERY <= snapshot <= sequence
    assert await (await shop.open()).contents("ann") == expected


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_another_proxy_finds_the_state(shop: Shop, number: int) -> None:
    await shop.open()
    for owner in ("ann", "bob"):
        await shop.add(owner, f"tea of {owner}", 2)
    await shop.close(number)
    await shop.open()
    assert await shop.contents("bob") == {"tea of bob": 2}
    await shop.add("ann", "milk", 1)
    assert await shop.contents("ann") == {"tea of ann": 2, "milk": 1}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_a_function_that_restarts_is_found_again(shop: Shop, number: int) -> None:
    await shop.open()
    await shop.add("ann", "tea", 2)
    await asyncio.to_thread(shop.function.stop, number)
    await shop.proxy.ready(503)
    waiting = asyncio.create_task(shop.add_while_it_is_away("ann", "milk", 1))
    await asyncio.to_thread(shop.function.start)
    await waiting
    assert await shop.contents("ann") == {"tea": 2, "milk": 1}
    await shop.proxy.ready()


async def test_old_protocols_can_be_refused(shop: Shop) -> None:
    settings = {"CLOUDSTATE_JOURNAL": "memory:", "CLOUDSTATE_OLDEST_PROTOCOL": "0.2"}
    shop.proxy = await ProxyProcess(shop.function.port, shop.backend, **settings).spawn()
    await shop.proxy.ready(503, "protocol version 0.1: this proxy is set to take 0.2 and later")
    if shop.function.sdk.functions != "java":  # it logs nothing
        await until(lambda: "protocol version 0.1" in shop.function.output(), "the function has heard of it")


async def test_more_carts_than_the_function_can_have_open(shop: Shop) -> None:
    """One SDK serves with ten threads, and every open cart holds one."""
    await shop.open()
    owners = [f"owner-{number}" for number in range(60)]
    for _ in range(3):
        await asyncio.gather(*(shop.add(owner, f"tea of {owner}", 1) for owner in owners))
    assert await asyncio.gather(*(shop.contents(owner) for owner in owners)) == [{f"tea of {owner}": 3} for owner in owners]
