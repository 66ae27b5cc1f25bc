// Replicated values of every type on npm `cloudstate` 0.0.3.
const { crdt } = require("cloudstate");

const entity = new crdt.Crdt(["shop/board.proto"], "shop.Board", { includeDirs: ["proto"] });
const sorted = (set) => [...set].sort().join(",");

const TYPES = {
  gcounter: {
    make: () => new crdt.GCounter(),
    show: (counter) => String(counter.value),
    change: (counter, { by }) => counter.increment(by),
  },
  pncounter: {
    make: () => new crdt.PNCounter(),
    show: (counter) => String(counter.value),
    change: (counter, { by }) => counter.increment(by),
  },
  gset: { make: () => new crdt.GSet(), show: sorted, change: (set, { element }) => set.add(element) },
  orset: {
    make: () => new crdt.ORSet(),
    show: sorted,
    change: (set, { element, remove }) => (remove ? set.delete(element) : set.add(element)),
  },
  lwwregister: {
    make: () => new crdt.LWWRegister(""),
    show: (register) => register.value,
    change: (register, { element }) => (register.value = element),
  },
  flag: { make: () => new crdt.Flag(), show: (flag) => String(flag.value), change: (flag) => flag.enable() },
  ormap: {
    make: () => new crdt.ORMap(),
    show: (map) => sorted([...map.entries()].map(([name, counter]) => `${name}=${counter.value}`)),
    change: changeEntry,
  },
  vote: {
    make: () => new crdt.Vote(),
    show: (vote) => `${vote.votesFor}/${vote.totalVoters}/${vote.vote}`,
    change: (vote, { by }) => (vote.vote = by > 0),
  },
};

function changeEntry(map, { element, by, remove }) {
  if (remove) {
    map.delete(element);
    return;
  }
  if (!map.has(element)) map.set(element, new crdt.PNCounter());
  map.get(element).increment(by);
}

const typeOf = (context) => TYPES[context.entityId.split("/")[0]];
const shown = (context) => ({ value: context.state === null ? "nothing" : typeOf(context).show(context.state) });

entity.commandHandlers = {
  Show: (request, context) => shown(context),

  Apply: (request, context) => {
    if (request.element === "bad") context.fail("bad is no element");
    if (context.state === null) context.state = typeOf(context).make();
    typeOf(context).change(context.state, request);
    return shown(context);
  },

  Erase: (request, context) => {
    context.delete();
    return {};
  },

  Watch: (request, context) => {
    context.onStateChange = (state, change) => {
      const now = { value: state === null ? "nothing" : typeOf(context).show(state) };
      if (now.value === "end") change.end();
      return now;
    };
    context.onStreamCancel = (state) => {
      if (request.key.startsWith("pncounter/")) state.increment(1000);
    };
    return shown(context);
  },
};

entity.start({ bindAddress: process.env.HOST, bindPort: Number(process.env.PORT) });
