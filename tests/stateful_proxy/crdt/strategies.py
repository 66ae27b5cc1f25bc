"""What a function may send: random deltas of every type, few elements and keys, so that replicas meet in them."""

from __future__ import annotations

from google.protobuf.any_pb2 import Any as AnyValue
from hypothesis import strategies as st

from cloudstate_core.pb.cloudstate import crdt_pb2 as pb
from stateful_proxy.crdt.kinds import Kind

anys = st.sampled_from("abcd").map(lambda letter: AnyValue(type_url="p.cloudstate.io/string", value=b"\n\x01" + letter.encode()))
some = st.lists(anys, max_size=3, unique_by=lambda value: value.value)


def deltas(kind: Kind, depth: int = 1) -> st.SearchStrategy[pb.CrdtDelta]:
    """Deltas of one type; maps hold all types, and maps `depth` deep."""
    match kind:
        case Kind.GCOUNTER:
            return st.integers(0, 9).map(lambda n: pb.CrdtDelta(gcounter=pb.GCounterDelta(increment=n)))
        case Kind.PNCOUNTER:
            return st.integers(-9, 9).map(lambda n: pb.CrdtDelta(pncounter=pb.PNCounterDelta(change=n)))
        case Kind.GSET:
            return some.map(lambda added: pb.CrdtDelta(gset=pb.GSetDelta(added=added)))
        case Kind.ORSET:
            parts = st.builds(pb.ORSetDelta, cleared=st.booleans(), removed=some, added=some)
            return parts.map(lambda delta: pb.CrdtDelta(orset=delta))
        case Kind.LWWREGISTER:
            clock, given = st.sampled_from([pb.DEFAULT, pb.REVERSE, pb.CUSTOM, pb.CUSTOM_AUTO_INCREMENT]), st.integers(-3, 3)
            writes = st.builds(pb.LWWRegisterDelta, value=anys, clock=clock, custom_clock_value=given)
            return writes.map(lambda delta: pb.CrdtDelta(lwwregister=delta))
        case Kind.FLAG:
            return st.booleans().map(lambda value: pb.CrdtDelta(flag=pb.FlagDelta(value=value)))
        case Kind.VOTE:
            return st.booleans().map(lambda vote: pb.CrdtDelta(vote=pb.VoteDelta(self_vote=vote)))
        case Kind.ORMAP:
            inner = any_deltas(depth - 1)
            entries = st.lists(st.builds(pb.ORMapEntryDelta, key=anys, delta=inner), max_size=2)
            parts = st.builds(pb.ORMapDelta, cleared=st.integers(0, 9).map(lambda n: n == 0), removed=some, updated=entries, added=entries)
            return parts.map(lambda delta: pb.CrdtDelta(ormap=delta))


def any_deltas(depth: int) -> st.SearchStrategy[pb.CrdtDelta]:
    """Deltas of all types."""
    kinds = [kind for kind in Kind if kind is not Kind.ORMAP or depth > 0]
    return st.sampled_from(kinds).flatmap(lambda kind: deltas(kind, depth))
