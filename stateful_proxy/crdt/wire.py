"""Records as bytes: what the journal stores and what proxies send to each other. The same record gives the same bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from google.protobuf.message import DecodeError

from cloudstate_core.pb.cloudstate_knative.v1 import crdt_pb2 as pb
from stateful_proxy.crdt.causality import Dots, Store
from stateful_proxy.crdt.counters import Counter
from stateful_proxy.crdt.flag import Flag, Vote
from stateful_proxy.crdt.kinds import Element, Kind
from stateful_proxy.crdt.map import Entry, Map
from stateful_proxy.crdt.register import LWWRegister, Write
from stateful_proxy.crdt.sets import Set
from stateful_proxy.crdt.state import Record, State

TYPE_URL = "type.googleapis.com/cloudstate_knative.v1.CrdtRecord"


class Unreadable(Exception):
    """Bytes that are no record: says which rule they break."""


def encoded(record: Record) -> bytes:
    """A record as bytes."""
    names = sorted(record.state.context.keys() | set(record.folded))
    encoder = _Encoder({name: index for index, name in enumerate(names)})
    message = pb.CrdtRecord(
        incarnation=record.incarnation,
        compaction=record.compaction,
        replicas=names,
        context_dots=encoder.dots(record.state.context),
        folded=[encoder.indices[name] for name in record.folded],
    )
    encoder.fill(message.store, record.state.store)
    return message.SerializeToString(deterministic=True)


def decoded(data: bytes) -> Record:
    """The record in bytes. Unreadable when there is none."""
    try:
        message = pb.CrdtRecord.FromString(data)
        decoder = _Decoder(message.replicas)
        state = State(decoder.store(message.store), decoder.dots(message.context_dots))
        return Record(state, message.incarnation, message.compaction, tuple(message.replicas[index] for index in message.folded))
    except (DecodeError, IndexError, KeyError, ValueError) as error:
        raise Unreadable(f"a replicated value's record cannot be read: {error!r}") from error


class _Encoder:
    """Writes stores; replicas go by index."""

    def __init__(self, indices: Mapping[str, int]) -> None:
        self.indices = indices

    def dots(self, dots: Dots) -> list[int]:
        if len(dots) == 1:
            ((replica, number),) = dots.items()
            return [self.indices[replica], number]
        return [part for replica, number in sorted(dots.items()) for part in (self.indices[replica], number)]

    def fill(self, target: pb.CrdtStore, store: Store) -> None:
        part = getattr(target, store.kind.name.lower())
        part.SetInParent()
        match store:
            case Counter():
                for replica, (number, amount) in sorted(store.slots.items()):
                    part.slots.add(replica=self.indices[replica], number=number, magnitude=abs(amount), negative=amount < 0)
            case Set():
                self._elements(store, part)
            case LWWRegister():
                for replica, (number, write) in sorted(store.writes.items()):
                    url, value = write.element
                    part.writes.add(replica=self.indices[replica], number=number, clock=write.clock, writer=write.writer, type_url=url, value=value)
            case Flag() | Vote():
                part.dots.extend(self.dots(store.dots))
            case Map():
                for key in sorted(store.entries):
                    for _, entry in sorted(store.entries[key].items(), key=lambda item: item[0]):
                        added = part.entries.add(type_url=key.type_url, key=key.value, dots=self.dots(entry.dots))
                        self.fill(added.value, entry.store)

    def _elements(self, store: Set, part: pb.CrdtElements) -> None:
        order = sorted(store.elements)
        urls = {url: index for index, url in enumerate(dict.fromkeys(element.type_url for element in order))}
        part.type_urls.extend(urls)
        part.types.extend([urls[element.type_url] for element in order])
        part.values.extend([element.value for element in order])
        dots = [store.elements[element] for element in order]
        part.counts.extend(map(len, dots))
        part.dots.extend([part for each in dots for part in self.dots(each)])


class _Decoder:
    """Reads stores."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def dots(self, flat: Sequence[int]) -> Dots:
        return {self._names[flat[at]]: flat[at + 1] for at in range(0, len(flat), 2)}

    def store(self, message: pb.CrdtStore) -> Store:
        name = message.WhichOneof("kind")
        kind = Kind[(name or "").upper()]
        match kind:
            case Kind.GCOUNTER | Kind.PNCOUNTER:
                slots = (message.gcounter if kind is Kind.GCOUNTER else message.pncounter).slots
                return Counter(kind, {self._names[s.replica]: (s.number, -s.magnitude if s.negative else s.magnitude) for s in slots})
            case Kind.GSET | Kind.ORSET:
                return Set(kind, self._elements(message.gset if kind is Kind.GSET else message.orset))
            case Kind.LWWREGISTER:
                return LWWRegister({self._names[w.replica]: (w.number, _write(w)) for w in message.lwwregister.writes})
            case Kind.FLAG:
                return Flag(self.dots(message.flag.dots))
            case Kind.VOTE:
                return Vote(self.dots(message.vote.dots))
            case Kind.ORMAP:
                return self._map(message.ormap)

    def _elements(self, message: pb.CrdtElements) -> dict[Element, Dots]:
        urls, flat, at = list(message.type_urls), list(message.dots), 0
        elements: dict[Element, Dots] = {}
        for kind, value, count in zip(message.types, message.values, message.counts, strict=True):
            elements[Element(urls[kind], value)] = self.dots(flat[at : at + 2 * count])
            at += 2 * count
        return elements

    def _map(self, message: pb.CrdtMap) -> Map:
        entries: dict[Element, dict[Kind, Entry]] = {}
        for entry in message.entries:
            store = self.store(entry.value)
            entries.setdefault(Element(entry.type_url, entry.key), {})[store.kind] = Entry(self.dots(entry.dots), store)
        return Map(entries)


def _write(message: pb.CrdtRegister.Write) -> Write:
    return Write(message.clock, message.writer, Element(message.type_url, message.value))
