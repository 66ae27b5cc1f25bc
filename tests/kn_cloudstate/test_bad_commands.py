"""Commands that cannot be executed, from the front door through activator and proxy to the function, and what they leave untouched."""

from __future__ import annotations

import asyncio
import pathlib
from typing import Any

import grpc
import grpc.aio
import pytest

from tests.disks import small_disk
from tests.kn_cloudstate.conftest import CART, LIMIT, until

SLOW = """
import asyncio, os, cart
from cloudstate_sdk import Function
add = cart.Cart.add_item
async def add_item(self, request, context):
    while not os.path.exists("gate"):
        await asyncio.sleep(0.01)
    return add(self, request, context)
cart.Cart.add_item = add_item
Function(cart.Cart).run()
"""
MAILBOX = 1_000
"""Commands that may wait for one entity at its proxy."""
INVALID, UNKNOWN, UNIMPLEMENTED = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNIMPLEMENTED


class Client:
    """The cart's methods with its messages."""

    def __init__(self, installation: Any, messages: Any) -> None:
        self.installation, self.messages = installation, messages

    def adding(self, user: str, quantity: int = 1, product: str = "tea", name: str = "tea") -> bytes:
        request = self.messages.AddLineItem(user_id=user, product_id=product, name=name, quantity=quantity)
        return bytes(request.SerializeToString())

    def quantities(self, user: str) -> dict[str, int]:
        answer = self.installation.call("GetCart", self.messages.GetShoppingCart(user_id=user).SerializeToString())
        return {item.product_id: item.quantity for item in self.messages.Cart.FromString(answer).items}


def test_commands_that_are_wrong_are_told_and_change_nothing(running: Any, sample: Any, messages: Any) -> None:
    with running(sample.service, sample.policy) as installation:
        cart = Client(installation, messages)
        path = CART + "AddItem"
        # the very first command, at zero pods and before anybody knows the methods
        assert installation.failure("Nope", cart.adding("ann")) == (UNIMPLEMENTED, f"{CART}Nope: is not a method of default/cart")
        installation.call("AddItem", cart.adding("ann", 3))
        no_key = (INVALID, f"{path}: the request's entity key must not be empty: it names the entity")
        assert installation.failure("AddItem", b"") == no_key
        assert installation.failure("AddItem", cart.adding("")) == no_key
        assert installation.failure("/no.Such/Method", b"") == (UNIMPLEMENTED, "/no.Such/Method: is not a method of default/cart")
        assert installation.failure("AddItem", b"\xff") == (INVALID, f"{path}: the request does not parse: the message is cut short")
        assert installation.failure("AddItem", cart.adding("ann")[:-3]) == (INVALID, f"{path}: the request does not parse: the message is cut short")
        # what only the function can tell: the key is there, and the name is no UTF-8
        code, text = installation.failure("AddItem", b"\x0a\x03ann\x1a\x01\xff")
        assert (code, text.startswith("AddItem: the request is not a com.example.shoppingcart.AddLineItem: ")) == (UNKNOWN, True), text
        code, text = installation.failure("AddItem", cart.adding("ann", -1))
        assert (code, text) == (UNKNOWN, "Cannot add a quantity of -1 of tea: it must be above zero")
        installation.call("AddItem", cart.adding("ann", 1))
        assert cart.quantities("ann") == {"tea": 4}
        assert cart.quantities("bob") == {}


def test_a_full_queue_at_zero_refuses_at_once_and_loses_none_that_waits(running: Any, service: Any, messages: Any, tmp_path: pathlib.Path) -> None:
    late = "import os, time\nwhile not os.path.exists('gate'):\n    time.sleep(0.01)\nimport cart\nfrom cloudstate_sdk import Function\n"
    with running(service(late + "Function(cart.Cart).run()\n"), ACTIVATOR_QUEUE="3") as installation:
        cart = Client(installation, messages)
        add = installation.channel.unary_unary(CART + "AddItem")
        calls = [add.future(cart.adding("ann"), timeout=LIMIT) for _ in range(5)]
        until(lambda: sum(call.done() for call in calls) == 2, "two of five are refused")
        refused = [call for call in calls if call.done()]
        told = (grpc.StatusCode.RESOURCE_EXHAUSTED, "default/cart: 3 requests wait already, no more are taken")
        assert [(call.code(), call.details()) for call in refused] == [told, told]
        (tmp_path / "gate").touch()
        for call in set(calls) - set(refused):
            call.result()
        assert cart.quantities("ann") == {"tea": 3}


async def test_a_full_mailbox_refuses_and_loses_none_that_waits(running: Any, service: Any, messages: Any, tmp_path: pathlib.Path) -> None:
    with running(service(SLOW)) as installation:
        cart = Client(installation, messages)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{installation.port}") as channel:
            add = channel.unary_unary(CART + "AddItem")
            calls = [add(cart.adding("ann"), timeout=LIMIT) for _ in range(MAILBOX + 50)]
            async with asyncio.timeout(LIMIT):
                while sum(call.done() for call in calls) < 49:  # one more may be at the function
                    await asyncio.sleep(0.02)
            refused = {call for call in calls if call.done()}
            told = (grpc.StatusCode.RESOURCE_EXHAUSTED, f"{CART.strip('/')}: {MAILBOX} commands wait for this entity, no more are taken")
            assert {(await call.code(), await call.details()) for call in refused} == {told}
            (tmp_path / "gate").touch()
            answers = await asyncio.gather(*calls, return_exceptions=True)
        executed = sum(isinstance(answer, bytes) for answer in answers)
        assert executed >= MAILBOX
        assert cart.quantities("ann") == {"tea": executed}


@pytest.mark.parametrize("kind", ["device", "limit"])
def test_a_full_disk_refuses_loses_nothing_and_goes_on_once_there_is_room(
    running: Any, sample: Any, messages: Any, tmp_path: pathlib.Path, kind: str
) -> None:
    acknowledged: dict[str, int] = {}
    refused: list[tuple[str, grpc.StatusCode, str]] = []
    with small_disk(tmp_path / "disk", kind) as disk:
        with running(sample.service, sample.policy, data=disk.folder) as installation:
            cart = Client(installation, messages)
            installation.call("AddItem", cart.adding("user-0"))
            acknowledged["user-0"] = 1
            disk.confine(installation.child("kn_cloudstate.journal_host"))
            number = 0
            while len(refused) < 20:
                number += 1
                user = f"user-{number % 10}"
                try:
                    installation.call("AddItem", cart.adding(user, name="n" * 8_000))
                except grpc.RpcError as error:
                    failed: Any = error
                    refused.append((user, failed.code(), failed.details()))
                else:
                    acknowledged[user] = acknowledged.get(user, 0) + 1
            assert {code for _, code, _ in refused} == {grpc.StatusCode.UNAVAILABLE}
            reason = "database or disk is full: make room, and writing goes on" if disk.mounted else "disk I/O error"
            assert all(f"journal {disk.folder}/journal.db: " in text and reason in text for _, _, text in refused), refused
            disk.make_room()
            until(lambda: _added(installation, cart), "commands are executed again")
            quantities = {user: cart.quantities(user).get("tea", 0) for user in acknowledged}
            for user, count in acknowledged.items():
                doubtful = 0 if disk.mounted else sum(name == user for name, _, _ in refused)
                assert count <= quantities[user] <= count + doubtful, user
        with running(sample.service, sample.policy, data=disk.folder) as again:
            cart = Client(again, messages)
            assert {user: cart.quantities(user).get("tea", 0) for user in acknowledged} == quantities


def _added(installation: Any, cart: Client) -> bool:
    try:
        installation.call("AddItem", cart.adding("after"))
    except grpc.RpcError:
        return False
    return True
