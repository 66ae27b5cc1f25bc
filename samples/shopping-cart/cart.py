"""The shopping cart: an event sourced entity, found by its user."""

from __future__ import annotations

from cloudstate_sdk import Context, Function, command, event, event_sourced, restore, snapshot
from google.protobuf.empty_pb2 import Empty
from pb.shoppingcart import shoppingcart_pb2 as api
from pb.shoppingcart.persistence import domain_pb2 as domain


@event_sourced("com.example.shoppingcart.ShoppingCart", persistence_id="shopping-cart", descriptor=api.DESCRIPTOR, snapshot_every=50)
class Cart:
    """Products and their quantities, in the order they were first added."""

    def __init__(self, user_id: str) -> None:
        self.items: dict[str, domain.LineItem] = {}

    @command
    def add_item(self, request: api.AddLineItem, context: Context) -> Empty:
        if request.quantity <= 0:
            context.fail(f"Cannot add a quantity of {request.quantity} of {request.product_id}: it must be above zero")
        item = domain.LineItem(productId=request.product_id, name=request.name, quantity=request.quantity)
        context.emit(domain.ItemAdded(item=item))
        return Empty()

    @command
    def remove_item(self, request: api.RemoveLineItem, context: Context) -> Empty:
        if request.product_id not in self.items:
            context.fail(f"Cannot remove {request.product_id}: it is not in the cart")
        context.emit(domain.ItemRemoved(productId=request.product_id))
        return Empty()

    @command
    def get_cart(self, request: api.GetShoppingCart, context: Context) -> api.Cart:
        items = [api.LineItem(product_id=i.productId, name=i.name, quantity=i.quantity) for i in self.items.values()]
        return api.Cart(items=items)

    @event
    def item_added(self, added: domain.ItemAdded) -> None:
        self.items.setdefault(added.item.productId, domain.LineItem(productId=added.item.productId, name=added.item.name))
        self.items[added.item.productId].quantity += added.item.quantity

    @event
    def item_removed(self, removed: domain.ItemRemoved) -> None:
        del self.items[removed.productId]

    @snapshot
    def save(self) -> domain.Cart:
        return domain.Cart(items=self.items.values())

    @restore
    def load(self, saved: domain.Cart) -> None:
        self.items = {item.productId: item for item in saved.items}


if __name__ == "__main__":
    Function(Cart, name="shopping-cart").run()
