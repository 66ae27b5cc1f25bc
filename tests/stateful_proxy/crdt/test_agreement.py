"""Three proxies, each with a function that keeps its own copy by the protocol's rules: in the end all copies are the same value.

The function answers late, in any order, and changes the value as it holds it; news between proxies comes late or never; the journal's answers are
lost now and then, and swaps happen or not.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudstate_core.journal.api import Swap, Unknown
from cloudstate_core.pb.cloudstate import crdt_pb2 as pb
from stateful_proxy.crdt import replication, views
from stateful_proxy.crdt.kinds import Element, Incompatible, Kind, element_of, elements_of, kind_of
from tests.stateful_proxy.conftest import FaultyJournal
from tests.stateful_proxy.crdt.bench import CrdtBench
from tests.stateful_proxy.crdt.strategies import deltas

NAMES = ("p", "q", "r")


def told(view: views.View | None, delta: pb.CrdtDelta) -> views.View:
    """The function's copy after a delta from the proxy: as for its own, but that the proxy sets the numbers of a vote."""
    if delta.HasField("vote"):
        return views.Tally(delta.vote.self_vote, delta.vote.votes_for, delta.vote.total_voters)
    if not delta.HasField("ormap"):
        after = views.applied(view, delta)
        assert not isinstance(after, Incompatible), after
        return after
    entries: dict[Element, views.View] = dict(view.entries) if isinstance(view, views.Entries) and not delta.ormap.cleared else {}
    for key in elements_of(delta.ormap.removed):
        del entries[key]
    for entry in delta.ormap.updated:
        key = element_of(entry.key)
        assert entries[key].kind is kind_of(entry.delta)
        entries[key] = told(entries[key], entry.delta)
    for entry in delta.ormap.added:
        assert element_of(entry.key) not in entries
        entries[element_of(entry.key)] = told(None, entry.delta)
    return views.Entries(entries)


class Side:
    """One proxy and the function behind it."""

    def __init__(self, name: str, journal: FaultyJournal) -> None:
        self.bench = CrdtBench(others=[other for other in NAMES if other != name], journal=journal)
        self.bench.replication.member = name
        self.stream, self.heard = 0, 0
        self.view: views.View | None = None
        self.open: list[int] = []

    def listen(self) -> None:
        """The function takes in what it was sent."""
        current = [n for n, s in self.bench.transport.streams.items() if s.path != replication.REPLICATE]
        if current and current[-1] != self.stream:
            self.stream, self.heard, self.view, self.open = current[-1], 0, None, []
        if not self.stream:
            return
        for message in self.bench.sent(self.stream)[self.heard :]:
            self.heard += 1
            match message.WhichOneof("message"):
                case "init":
                    self.view = told(None, message.init.delta) if message.init.HasField("delta") else None
                case "delta":
                    assert not self.open, "the proxy changes the value only when nothing is unanswered"
                    self.view = told(self.view, message.delta)
                case "command":
                    self.open.append(message.command.id)
                case "delete":
                    self.view = None

    def answer(self, which: int, delta: pb.CrdtDelta) -> None:
        """The function answers one of its commands, changing its copy."""
        self.listen()
        if self.open:
            number = self.open.pop(which % len(self.open))
            after = views.applied(self.view, delta)
            assert not isinstance(after, Incompatible)
            self.view = after
            self.bench.reply(self.stream, number, delta)


Step = tuple[str, int, Any]


def steps(kind: Kind) -> st.SearchStrategy[list[Step]]:
    """What happens at which of the three."""
    side = st.integers(0, 2)
    return st.lists(
        st.one_of(
            st.tuples(st.just("call"), side, st.none()),
            st.tuples(st.just("answer"), side, st.tuples(st.integers(0, 5), deltas(kind))),
            st.tuples(st.just("news"), side, st.integers(0, 50)),
            st.tuples(st.just("read"), side, st.none()),
            st.tuples(st.just("unsure"), side, st.booleans()),
            st.tuples(st.just("time"), side, st.none()),
            st.tuples(st.just("members"), side, st.sets(side)),
        ),
        max_size=30,
    )


def play(sides: list[Side], step: Step) -> None:
    what, at, detail = step
    side = sides[at]
    bench = side.bench
    match what:
        case "call":
            bench.call()
        case "answer":
            side.answer(*detail)
        case "news":
            sent = [s for other in sides for s in other.bench.transport.streams.values() if s.path == replication.REPLICATE]
            if sent:
                bench.calls += 1
                bench.crdts.received(bench.calls, sent[detail % len(sent)].sent[0])
                bench.batch.flush()
        case "read":
            bench.crdts.tick(0.0)
            bench.batch.flush()
        case "unsure":
            bench.journal.fail(Swap, Unknown("no answer"), applied=detail)
        case "time":
            bench.fire_only(1.0)
        case "members":
            seem_to_be(side, {NAMES[other] for other in detail})


def seem_to_be(side: Side, names: set[str]) -> None:
    """A proxy's list of members, right or wrong; the others' votes do not count then, and what they left is folded."""
    side.bench.peers.others = frozenset(names - {side.bench.replication.member})
    side.bench.crdts.members_changed()


@pytest.mark.parametrize("kind", list(Kind), ids=lambda kind: kind.name)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_functions_copy_is_the_value_in_the_end(kind: Kind, data: st.DataObject) -> None:
    journal = FaultyJournal()
    sides = [Side(name, journal) for name in NAMES]
    for side in sides:
        side.bench.call()
    for step in data.draw(steps(kind)):
        play(sides, step)
    journal.faults.clear()
    for side in sides:
        seem_to_be(side, set(NAMES))
    for _ in range(3):
        for side in sides:
            side.listen()
            while side.open:
                side.bench.reply(side.stream, side.open.pop())
            side.bench.fire_only(1.0)
            play(sides, ("read", sides.index(side), None))
    views_ = []
    for side in sides:
        side.listen()
        assert not side.open
        view, record = side.view, side.bench.stored()
        assert all(answer.status == 0 for answer in side.bench.transport.answers.values()), side.bench.transport.answers
        assert side.bench.reported == []
        views_.append(view)
        assert (view is None) == (record is None)
    if kind not in (Kind.VOTE, Kind.ORMAP):
        assert views_[0] == views_[1] == views_[2]
    assert [anonymous(view) for view in views_] == [anonymous(views_[0])] * 3


def anonymous(view: views.View | None) -> object:
    """A view without the onlooker's own votes, which are the only thing in which copies may differ."""
    if isinstance(view, views.Tally):
        return (view.votes_for, view.total_voters)
    if isinstance(view, views.Entries):
        return {key: anonymous(value) for key, value in view.entries.items()}
    return view
