package shop;

import com.google.protobuf.Empty;
import io.cloudstate.javasupport.CloudState;
import io.cloudstate.javasupport.eventsourced.CommandContext;
import io.cloudstate.javasupport.eventsourced.CommandHandler;
import io.cloudstate.javasupport.eventsourced.EventHandler;
import io.cloudstate.javasupport.eventsourced.EventSourcedEntity;
import io.cloudstate.javasupport.eventsourced.Snapshot;
import io.cloudstate.javasupport.eventsourced.SnapshotHandler;
import java.util.LinkedHashMap;
import java.util.Map;

/** The cart on Maven's `io.cloudstate:cloudstate-java-support` 0.5.2, as its users write it. */
@EventSourcedEntity(persistenceId = "cart", snapshotEvery = 3)
public final class Cart {
  private final Map<String, Integer> items = new LinkedHashMap<>();

  @Snapshot
  public Contents snapshot() {
    Contents.Builder contents = Contents.newBuilder();
    items.forEach((product, quantity) -> contents.addItems(Item.newBuilder().setProduct(product).setQuantity(quantity)));
    return contents.build();
  }

  @SnapshotHandler
  public void restored(Contents contents) {
    items.clear();
    contents.getItemsList().forEach(item -> items.put(item.getProduct(), item.getQuantity()));
  }

  @EventHandler
  public void added(Added event) {
    items.merge(event.getProduct(), event.getQuantity(), Integer::sum);
  }

  @EventHandler
  public void removed(Removed event) {
    items.remove(event.getProduct());
  }

  @CommandHandler
  public Empty addItem(Add request, CommandContext context) {
    if (request.getProduct().equals("crash")) throw new IllegalStateException("this handler crashes");
    if (request.getQuantity() <= 0) context.fail("cannot add " + request.getQuantity() + " of " + request.getProduct());
    context.emit(Added.newBuilder().setProduct(request.getProduct()).setQuantity(request.getQuantity()).build());
    return Empty.getDefaultInstance();
  }

  @CommandHandler
  public Empty removeItem(Remove request, CommandContext context) {
    if (!items.containsKey(request.getProduct())) context.fail(request.getProduct() + " is not in the cart");
    context.emit(Removed.newBuilder().setProduct(request.getProduct()).build());
    return Empty.getDefaultInstance();
  }

  @CommandHandler
  public Empty giveItem(Gift request, CommandContext context) {
    context.emit(Removed.newBuilder().setProduct(request.getProduct()).build());
    Add add = Add.newBuilder().setOwner(request.getTo()).setProduct(request.getProduct()).setQuantity(1).build();
    context.effect(context.serviceCallFactory().lookup("shop.Cart", "AddItem", Add.class).createCall(add), true);
    return Empty.getDefaultInstance();
  }

  @CommandHandler
  public void peekAt(Peek request, CommandContext context) {
    Get get = Get.newBuilder().setOwner(request.getAt()).build();
    context.forward(context.serviceCallFactory().lookup("shop.Cart", "GetCart", Get.class).createCall(get));
  }

  @CommandHandler
  public Contents getCart(Get request) {
    return snapshot();
  }

  public static void main(String[] arguments) throws Exception {
    new CloudState()
        .registerEventSourcedEntity(Cart.class, CartProto.getDescriptor().findServiceByName("Cart"), CartProto.getDescriptor())
        .start()
        .toCompletableFuture()
        .get();
  }
}
