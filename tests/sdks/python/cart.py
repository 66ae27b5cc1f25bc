"""The cart on PyPI `cloudstate` 0.1.1, as its users write it."""

from cloudstate.cloudstate import CloudState
from cloudstate.entity_pb2 import Forward, SideEffect
from cloudstate.event_sourced_context import EventSourcedCommandContext
from cloudstate.event_sourced_entity import EventSourcedEntity
from google.protobuf.empty_pb2 import Empty
from shop import cart_pb2
from shop.cart_pb2 import Add, Added, Contents, Get, Gift, Peek, Remove, Removed


def empty(owner: str) -> Contents:
    return Contents()


entity = EventSourcedEntity(cart_pb2.DESCRIPTOR.services_by_name["Cart"], [cart_pb2.DESCRIPTOR], empty, "cart", 3)


@entity.snapshot()
def snapshot(cart: Contents):
    return cart


@entity.snapshot_handler()
def restored(cart: Contents):
    return cart


@entity.event_handler(Added)
def added(cart: Contents, event: Added):
    for item in cart.items:
        if item.product == event.product:
            item.quantity += event.quantity
            return cart
    cart.items.add(product=event.product, quantity=event.quantity)
    return cart


@entity.event_handler(Removed)
def removed(cart: Contents, event: Removed):
    kept = [item for item in cart.items if item.product != event.product]
    return Contents(items=kept)


@entity.command_handler("AddItem")
def add_item(request: Add, context: EventSourcedCommandContext):
    if request.product == "crash":
        raise ValueError("this handler crashes")
    if request.quantity <= 0:
        context.fail(f"cannot add {request.quantity} of {request.product}")
    else:
        context.emit(Added(product=request.product, quantity=request.quantity))
    return Empty()


@entity.command_handler("RemoveItem")
def remove_item(cart: Contents, request: Remove, context: EventSourcedCommandContext):
    if all(item.product != request.product for item in cart.items):
        context.fail(f"{request.product} is not in the cart")
    else:
        context.emit(Removed(product=request.product))
    return Empty()


@entity.command_handler("GiveItem")
def give_item(request: Gift, context: EventSourcedCommandContext):
    context.emit(Removed(product=request.product))
    effect = SideEffect(service_name="shop.Cart", command_name="AddItem", synchronous=True)
    effect.payload.Pack(Add(owner=request.to, product=request.product, quantity=1))
    context.effects.append(effect)
    return Empty()


@entity.command_handler("PeekAt")
def peek_at(request: Peek, context: EventSourcedCommandContext):
    context.forward = Forward(service_name="shop.Cart", command_name="GetCart")
    context.forward.payload.Pack(Get(owner=request.at))


@entity.command_handler("GetCart")
def get_cart(cart: Contents, request: Get):
    return cart


if __name__ == "__main__":
    CloudState().register_event_sourced_entity(entity).start()
