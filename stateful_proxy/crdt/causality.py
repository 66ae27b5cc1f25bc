"""How replicated values know what is new and what was removed: operations are numbered, and a value knows which of them it has seen.

A *replica* is one proxy process. A *dot* names one operation of one replica: what the operation put into a value carries its dot. The value's
*context* tells, for each replica, the last operation it has seen. A dot that only one side of a merge has was removed by the other side if
that one's context covers it, and is new to that side otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self

from cloudstate_core.pb.cloudstate import crdt_pb2
from stateful_proxy.crdt.kinds import Incompatible, Kind
from stateful_proxy.crdt.views import View

FOLDED = ""
"""Stands for all replicas that were folded into one."""

Dots = Mapping[str, int]
"""At most one dot of each replica. As a context: the last operation seen of each."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """The operation that a delta is applied as. `now` is wall-clock time in milliseconds."""

    replica: str
    number: int
    now: int

    @property
    def dots(self) -> Dots:
        """The one dot of this operation."""
        return {self.replica: self.number}


@dataclass(frozen=True, slots=True)
class Contexts:
    """What the two sides of a merge have seen."""

    mine: Dots
    theirs: Dots

    def survives(self, replica: str, number: int, theirs: int | None) -> bool:
        """Whether a dot of mine is in the merge, where the other side has `theirs` of that replica in the same place."""
        return theirs == number or number > self.theirs.get(replica, 0)

    def swapped(self) -> Contexts:
        """The same merge seen from the other side."""
        return Contexts(self.theirs, self.mine)

    def dots(self, mine: Dots, theirs: Dots) -> Dots:
        """The dots of one place after the merge."""
        if mine == theirs:
            return mine
        kept = {r: n for r, n in mine.items() if self.survives(r, n, theirs.get(r))}
        back = self.swapped()
        for replica, number in theirs.items():
            if back.survives(replica, number, mine.get(replica)):
                kept[replica] = max(number, kept.get(replica, 0))
        return kept


@dataclass(frozen=True, slots=True)
class Fold:
    """Replicas that have departed and become one, with the number of that operation."""

    gone: frozenset[str]
    number: int
    remembered: frozenset[str]
    """Replicas whose votes are kept: they live, or departed not long ago."""

    def dots(self, dots: Dots) -> Dots:
        """The dots of one place after the fold."""
        kept = {r: n for r, n in dots.items() if r not in self.gone}
        return kept if len(kept) == len(dots) else {**kept, FOLDED: self.number}


@dataclass(frozen=True, slots=True)
class Onlooker:
    """Whose view of a value is asked for, and which replicas are up."""

    replica: str
    voters: frozenset[str]


class Store(Protocol):
    """The replicated form of one value. Never changed: every operation gives a new one."""

    @property
    def kind(self) -> Kind:
        """Its type."""

    def applied(self, delta: crdt_pb2.CrdtDelta, stamp: Stamp) -> Self | Incompatible:
        """After a function's delta, which is of this type."""

    def merged(self, other: Any, contexts: Contexts) -> Self:
        """Joined with another of the same type: commutative, associative, idempotent."""

    def folded(self, fold: Fold) -> Self:
        """With departed replicas folded into one; the view stays the same, but for their votes, which count no more."""

    def view(self, onlooker: Onlooker) -> View:
        """What the function is to see."""
