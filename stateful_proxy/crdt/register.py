"""LWWRegister: the write with the highest clock stays; equal clocks are decided by the writer's name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from cloudstate_core.pb.cloudstate import crdt_pb2
from stateful_proxy.crdt.causality import FOLDED, Contexts, Fold, Onlooker, Stamp
from stateful_proxy.crdt.kinds import Element, Kind, element_of
from stateful_proxy.crdt.views import MAX_SIGNED, MIN_SIGNED, Register


class Write(NamedTuple):
    """A value and when it was written. The greatest of several wins; the value itself decides only where one writer gave a clock twice."""

    clock: int
    writer: str
    element: Element


@dataclass(frozen=True, slots=True)
class LWWRegister:
    """Writes that have not been overwritten, each under the number of the operation that left it."""

    writes: Mapping[str, tuple[int, Write]] = field(default_factory=dict)
    kind: Kind = Kind.LWWREGISTER

    @property
    def held(self) -> Write | None:
        """The write that wins so far."""
        return max((write for _, write in self.writes.values()), default=None)

    def applied(self, delta: crdt_pb2.CrdtDelta, stamp: Stamp) -> LWWRegister:
        """See Store. A write whose clock is too low changes nothing: the one held is kept, as of this operation."""
        held = self.held
        write = Write(_clock(delta.lwwregister, held, stamp.now), stamp.replica, element_of(delta.lwwregister.value))
        if held is not None and held[:2] > write[:2]:
            write = held
        return LWWRegister({stamp.replica: (stamp.number, write)})

    def merged(self, other: LWWRegister, contexts: Contexts) -> LWWRegister:
        """See Store."""
        if self.writes == other.writes:
            return self
        writes: dict[str, tuple[int, Write]] = {}
        for one, two, seen in ((self, other, contexts), (other, self, contexts.swapped())):
            for replica, write in one.writes.items():
                there = two.writes.get(replica)
                if seen.survives(replica, write[0], there and there[0]):
                    writes[replica] = max(write, writes.get(replica, write))
        return LWWRegister(writes)

    def folded(self, fold: Fold) -> LWWRegister:
        """See Store."""
        writes = {r: write for r, write in self.writes.items() if r not in fold.gone}
        left = [write for r, (_, write) in self.writes.items() if r in fold.gone]
        return LWWRegister({**writes, FOLDED: (fold.number, max(left))} if left else writes)

    def view(self, onlooker: Onlooker) -> Register:
        """See Store."""
        held = self.held
        return Register(held.element if held is not None else Element("", b""))


def _clock(delta: crdt_pb2.LWWRegisterDelta, held: Write | None, now: int) -> int:
    """The time stamp of a write, by the clock that the function chose."""
    match delta.clock:
        case crdt_pb2.CUSTOM:
            return delta.custom_clock_value
        case crdt_pb2.CUSTOM_AUTO_INCREMENT:
            given = delta.custom_clock_value
            return given if held is None else max(given, min(held.clock + 1, MAX_SIGNED))
        case crdt_pb2.REVERSE:
            return -now if held is None else max(MIN_SIGNED, min(-now, held.clock - 1))
        case _:
            return now if held is None else max(now, min(held.clock + 1, MAX_SIGNED))
