// The cart on npm `cloudstate` 0.0.3, as its users write it.
const { EventSourced } = require("cloudstate");

const entity = new EventSourced(["shop/cart.proto"], "shop.Cart", {
  persistenceId: "cart",
  snapshotEvery: 3,
  includeDirs: ["proto"],
});
const Contents = entity.lookupType("shop.Contents");
const Added = entity.lookupType("shop.Added");
const Removed = entity.lookupType("shop.Removed");
const methods = entity.grpc.shop.Cart.service;

entity.setInitial(() => Contents.create({ items: [] }));
entity.setBehavior(() => ({
  commandHandlers: { AddItem: addItem, RemoveItem: removeItem, GiveItem: giveItem, PeekAt: peekAt, GetCart: (request, cart) => cart },
  eventHandlers: { Added: added, Removed: removed },
}));

function addItem(request, cart, context) {
  if (request.product === "crash") throw new Error("this handler crashes");
  if (request.quantity <= 0) context.fail(`cannot add ${request.quantity} of ${request.product}`);
  context.emit(Added.create({ product: request.product, quantity: request.quantity }));
  return {};
}

function removeItem(request, cart, context) {
  if (!cart.items.some((item) => item.product === request.product)) context.fail(`${request.product} is not in the cart`);
  context.emit(Removed.create({ product: request.product }));
  return {};
}

function giveItem(request, cart, context) {
  context.emit(Removed.create({ product: request.product }));
  context.effect(methods.AddItem, { owner: request.to, product: request.product, quantity: 1 }, true);
  return {};
}

function peekAt(request, cart, context) {
  context.thenForward(methods.GetCart, { owner: request.at });
}

function added(event, cart) {
  const item = cart.items.find((held) => held.product === event.product);
  if (item) item.quantity += event.quantity;
  else cart.items.push({ product: event.product, quantity: event.quantity });
  return cart;
}

function removed(event, cart) {
  cart.items = cart.items.filter((item) => item.product !== event.product);
  return cart;
}

entity.start({ bindAddress: process.env.HOST, bindPort: Number(process.env.PORT) });
