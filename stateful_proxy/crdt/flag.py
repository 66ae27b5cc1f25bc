"""Flag and Vote: who has set it, and who votes for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cloudstate_core.pb.cloudstate import crdt_pb2
from stateful_proxy.crdt.causality import Contexts, Dots, Fold, Onlooker, Stamp
from stateful_proxy.crdt.kinds import Kind
from stateful_proxy.crdt.views import Raised, Tally


@dataclass(frozen=True, slots=True)
class Flag:
    """Set by these operations; it never goes back."""

    dots: Dots = field(default_factory=dict)
    kind: Kind = Kind.FLAG

    def applied(self, delta: crdt_pb2.CrdtDelta, stamp: Stamp) -> Flag:
        """See Store."""
        return Flag(stamp.dots) if delta.flag.value else self

    def merged(self, other: Flag, contexts: Contexts) -> Flag:
        """See Store."""
        return Flag(contexts.dots(self.dots, other.dots))

    def folded(self, fold: Fold) -> Flag:
        """See Store."""
        return Flag(fold.dots(self.dots))

    def view(self, onlooker: Onlooker) -> Raised:
        """See Store."""
        return Raised(bool(self.dots))


@dataclass(frozen=True, slots=True)
class Vote:
    """The replicas that vote for it. A vote counts while its replica is up."""

    dots: Mapping[str, int] = field(default_factory=dict)
    kind: Kind = Kind.VOTE

    def applied(self, delta: crdt_pb2.CrdtDelta, stamp: Stamp) -> Vote:
        """See Store."""
        others = {r: n for r, n in self.dots.items() if r != stamp.replica}
        return Vote({**others, **stamp.dots} if delta.vote.self_vote else others)

    def merged(self, other: Vote, contexts: Contexts) -> Vote:
        """See Store."""
        return Vote(contexts.dots(self.dots, other.dots))

    def folded(self, fold: Fold) -> Vote:
        """See Store."""
        return Vote({r: n for r, n in self.dots.items() if r in fold.remembered})

    def view(self, onlooker: Onlooker) -> Tally:
        """See Store."""
        return Tally(onlooker.replica in self.dots, len(onlooker.voters & self.dots.keys()), len(onlooker.voters))
