"""The cart's gRPC client as the demo uses it."""

from __future__ import annotations

from typing import Any

import grpc.aio
from pb.shoppingcart import shoppingcart_pb2 as messages

_SERVICE = "/com.example.shoppingcart.ShoppingCart"


class CartClient:
    """Adds one product at a time and reads carts."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        add: Any = channel.unary_unary(f"{_SERVICE}/AddItem", request_serializer=messages.AddLineItem.SerializeToString)
        get: Any = channel.unary_unary(
            f"{_SERVICE}/GetCart", request_serializer=messages.GetShoppingCart.SerializeToString, response_deserializer=messages.Cart.FromString
        )
        self._add, self._get = add, get

    async def add_item(self, cart: str, product: str, command_id: str, timeout: float) -> None:
        """Add one unit of a product."""
        request = messages.AddLineItem(user_id=cart, product_id=product, name=product, quantity=1)
        await self._add(request, timeout=timeout, metadata=(("cloudstate-command-id", command_id),))

    async def get_cart(self, cart: str, timeout: float) -> dict[str, int]:
        """Quantities by product."""
        found = await self._get(messages.GetShoppingCart(user_id=cart), timeout=timeout)
        return {item.product_id: item.quantity for item in found.items}
