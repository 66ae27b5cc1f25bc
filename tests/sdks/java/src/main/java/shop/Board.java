package shop;

import com.google.protobuf.Any;
import com.google.protobuf.Empty;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.protobuf.Message;
import io.cloudstate.javasupport.CloudState;
import io.cloudstate.javasupport.crdt.CommandContext;
import io.cloudstate.javasupport.crdt.Crdt;
import io.cloudstate.javasupport.crdt.CrdtEntityHandler;
import io.cloudstate.javasupport.crdt.CrdtFactory;
import io.cloudstate.javasupport.crdt.Flag;
import io.cloudstate.javasupport.crdt.GCounter;
import io.cloudstate.javasupport.crdt.GSet;
import io.cloudstate.javasupport.crdt.LWWRegister;
import io.cloudstate.javasupport.crdt.ORMap;
import io.cloudstate.javasupport.crdt.ORSet;
import io.cloudstate.javasupport.crdt.PNCounter;
import io.cloudstate.javasupport.crdt.StreamedCommandContext;
import io.cloudstate.javasupport.crdt.Vote;
import java.util.Collection;
import java.util.Optional;
import java.util.stream.Collectors;

/** Replicated values of every type on Maven's `io.cloudstate:cloudstate-java-support` 0.5.2. */
public final class Board implements CrdtEntityHandler {
  @Override
  public Optional<Any> handleCommand(Any command, CommandContext context) {
    switch (context.commandName()) {
      case "Show":
        return Optional.of(shown(context.state(Crdt.class)));
      case "Apply":
        return Optional.of(apply(read(command, Change.class), context));
      default:
        context.delete();
        return Optional.of(Any.pack(Empty.getDefaultInstance()));
    }
  }

  @Override
  public Optional<Any> handleStreamedCommand(Any command, StreamedCommandContext<Any> context) {
    context.onChange(
        change -> {
          Any now = shown(change.state(Crdt.class));
          if (read(now, Shown.class).getValue().equals("end")) change.endStream();
          return Optional.of(now);
        });
    context.onCancel(cancelled -> cancelled.state(Crdt.class).filter(PNCounter.class::isInstance).ifPresent(c -> ((PNCounter) c).increment(1000)));
    return Optional.of(shown(context.state(Crdt.class)));
  }

  private static Any apply(Change change, CommandContext context) {
    if (change.getElement().equals("bad")) context.fail("bad is no element");
    Crdt state = context.state(Crdt.class).orElseGet(() -> make(context.entityId().split("/")[0], context));
    change(state, change);
    return shown(Optional.of(state));
  }

  private static Crdt make(String type, CrdtFactory factory) {
    switch (type) {
      case "gcounter":
        return factory.newGCounter();
      case "pncounter":
        return factory.newPNCounter();
      case "gset":
        return factory.<String>newGSet();
      case "orset":
        return factory.<String>newORSet();
      case "lwwregister":
        return factory.newLWWRegister("");
      case "flag":
        return factory.newFlag();
      case "ormap":
        return factory.<String, PNCounter>newORMap();
      default:
        return factory.newVote();
    }
  }

  @SuppressWarnings("unchecked")
  private static void change(Crdt state, Change change) {
    String element = change.getElement();
    if (state instanceof GCounter) ((GCounter) state).increment(change.getBy());
    else if (state instanceof PNCounter) ((PNCounter) state).increment(change.getBy());
    else if (state instanceof GSet) ((GSet<String>) state).add(element);
    else if (state instanceof ORSet && change.getRemove()) ((ORSet<String>) state).remove(element);
    else if (state instanceof ORSet) ((ORSet<String>) state).add(element);
    else if (state instanceof LWWRegister) ((LWWRegister<String>) state).set(element);
    else if (state instanceof Flag) ((Flag) state).enable();
    else if (state instanceof ORMap && change.getRemove()) ((ORMap<String, PNCounter>) state).remove(element);
    else if (state instanceof ORMap) ((ORMap<String, PNCounter>) state).getOrCreate(element, CrdtFactory::newPNCounter).increment(change.getBy());
    else ((Vote) state).vote(change.getBy() > 0);
  }

  private static Any shown(Optional<Crdt> state) {
    return Any.pack(Shown.newBuilder().setValue(state.map(Board::text).orElse("nothing")).build());
  }

  @SuppressWarnings("unchecked")
  private static String text(Crdt state) {
    if (state instanceof GCounter) return Long.toString(((GCounter) state).getValue());
    if (state instanceof PNCounter) return Long.toString(((PNCounter) state).getValue());
    if (state instanceof LWWRegister) return ((LWWRegister<String>) state).get();
    if (state instanceof Flag) return Boolean.toString(((Flag) state).isEnabled());
    if (state instanceof Vote) return ((Vote) state).getVotesFor() + "/" + ((Vote) state).getVoters() + "/" + ((Vote) state).getSelfVote();
    if (state instanceof Collection) return ((Collection<String>) state).stream().sorted().collect(Collectors.joining(","));
    return ((ORMap<String, PNCounter>) state)
        .entrySet().stream().map(e -> e.getKey() + "=" + e.getValue().getValue()).sorted().collect(Collectors.joining(","));
  }

  private static <T extends Message> T read(Any any, Class<T> type) {
    try {
      return any.unpack(type);
    } catch (InvalidProtocolBufferException error) {
      throw new IllegalArgumentException(error);
    }
  }

  public static void main(String[] arguments) throws Exception {
    Board board = new Board();
    new CloudState()
        .registerCrdtEntity(context -> board, BoardProto.getDescriptor().findServiceByName("Board"), BoardProto.getDescriptor())
        .start()
        .toCompletableFuture()
        .get();
  }
}
