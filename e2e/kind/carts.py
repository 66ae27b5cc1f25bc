"""Load on the shopping cart that can tell what was lost or applied twice: each cart is one item whose quantity counts the acknowledged commands."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio

from .conftest import INGRESS, LIMIT, ROOT

sys.path.insert(0, str(ROOT / "samples/shopping-cart"))
from pb.shoppingcart import shoppingcart_pb2 as pb

PATH = "/com.example.shoppingcart.ShoppingCart"
PRODUCT = "apple"


@dataclass(slots=True)
class Ledger:
    """What a load has seen. `unknown` commands were answered with an error after they may have begun."""

    acknowledged: dict[str, int] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    unknown: dict[str, int] = field(default_factory=dict)
    latencies: list[float] = field(default_factory=list)

    @property
    def total(self) -> int:
        """Commands that were acknowledged."""
        return sum(self.acknowledged.values())


class Carts:
    """A client of the shopping cart at a host behind the ingress."""

    def __init__(self, host: str, connections: int = 4) -> None:
        options = [("grpc.default_authority", host), ("grpc.use_local_subchannel_pool", 1)]
        self._channels = [grpc.aio.insecure_channel(INGRESS, options=options) for _ in range(connections)]
        self.ledger = Ledger()

    def _method(self, name: str, cart: str, request: Any, response: Any) -> Any:
        channel = self._channels[hash(cart) % len(self._channels)]
        return channel.unary_unary(f"{PATH}/{name}", request.SerializeToString, response)

    async def add(self, cart: str) -> bool:
        """Put one more into a cart; True when that was acknowledged."""
        item = pb.AddLineItem(user_id=cart, product_id=PRODUCT, name="Apple", quantity=1)
        began = time.monotonic()
        try:
            await self._method("AddItem", cart, pb.AddLineItem, None)(item, timeout=LIMIT)
        except grpc.aio.AioRpcError as error:
            self.ledger.errors.append(f"{error.code().name}: {error.details()}")
            self.ledger.unknown[cart] = self.ledger.unknown.get(cart, 0) + 1
            return False
        self.ledger.latencies.append(time.monotonic() - began)
        self.ledger.acknowledged[cart] = self.ledger.acknowledged.get(cart, 0) + 1
        return True

    async def quantity(self, cart: str) -> int:
        """How many there are in a cart."""
        found = await self._method("GetCart", cart, pb.GetShoppingCart, pb.Cart.FromString)(pb.GetShoppingCart(user_id=cart), timeout=LIMIT)
        return sum(item.quantity for item in found.items if item.product_id == PRODUCT)

    @contextlib.asynccontextmanager
    async def load(self, carts: int, pause: float = 0.0) -> Any:
        """One command after the other on each of some carts while the block runs."""
        going = True

        async def shop(cart: str) -> None:
            while going:
                await self.add(cart)
                await asyncio.sleep(pause)

        tasks = [asyncio.create_task(shop(f"cart-{n}")) for n in range(carts)]
        try:
            yield
        finally:
            going = False
            await asyncio.gather(*tasks)

    async def wrong(self) -> dict[str, tuple[int, int, int]]:
        """Carts whose quantity is not what was acknowledged, as (acknowledged, unknown, quantity)."""
        found = {}
        for cart in sorted(self.ledger.acknowledged | self.ledger.unknown):
            sure, maybe = self.ledger.acknowledged.get(cart, 0), self.ledger.unknown.get(cart, 0)
            quantity = await self.quantity(cart)
            if not sure <= quantity <= sure + maybe:
                found[cart] = (sure, maybe, quantity)
        return found

    async def close(self) -> None:
        """Close the connections."""
        for channel in self._channels:
            await channel.close()
