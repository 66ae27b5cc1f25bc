"""What holds of all replicated types: a delta says what was changed, no more and no less, and what fails has never been."""

from __future__ import annotations

import copy
from typing import Any

from cloudstate_sdk.crdt import Crdt
from cloudstate_sdk.crdt.base import Held, applied
from cloudstate_sdk.pb.cloudstate import crdt_pb2 as sdk
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudstate_core.pb.cloudstate import crdt_pb2 as proxy
from stateful_proxy.crdt import views
from stateful_proxy.crdt.kinds import Incompatible, Kind
from tests.sdk.crdt_values import KINDS, Change, believed, changes, kinds, plain
from tests.stateful_proxy.crdt.strategies import deltas

Program = list[Change]


class Pair:
    """The value in the function, and what the proxy believes it to be, which follows the deltas of both."""

    def __init__(self, kind: Kind) -> None:
        self.kind = KINDS[kind]
        self.held: Held = self.kind._empty()
        self.view: views.View = views.EMPTY[kind]

    def look(self) -> Crdt:
        return self.kind(held=self.held)

    def answered(self, view: Crdt) -> None:
        """A command is answered: its changes go to the proxy."""
        if view._changed():
            followed = views.applied(self.view, proxy.CrdtDelta.FromString(view._delta().SerializeToString()))
            assert not isinstance(followed, Incompatible)
            self.view = followed
            view._commit()
        assert not view._changed()
        self.agree()

    def told(self, delta: proxy.CrdtDelta, others: tuple[int, int]) -> None:
        """Others have changed it: the proxy gives the difference."""
        after = views.applied(self.view, delta)
        if isinstance(after, views.Tally):
            after = views.Tally(after.self_vote, after.self_vote + others[0], 1 + others[0] + others[1])
        assert not isinstance(after, Incompatible)
        difference = views.difference(self.view, after)
        if isinstance(difference, Incompatible):
            return
        if difference is not None:
            self.held = applied(self.held, sdk.CrdtDelta.FromString(difference.SerializeToString()))
        self.view = after
        self.agree()

    def agree(self) -> None:
        assert plain(self.look()) == believed(self.view)


def rounds(kind: Kind) -> st.SearchStrategy[Any]:
    program = st.lists(changes(kind), max_size=5)
    told = st.tuples(deltas(kind, 2), st.tuples(st.integers(0, 3), st.integers(0, 3)))
    return st.lists(st.tuples(st.just("answered"), program) | st.tuples(st.just("failed"), program) | st.tuples(st.just("told"), told), max_size=6)


@settings(max_examples=300, deadline=None)
@given(kinds().flatmap(lambda kind: st.tuples(st.just(kind), rounds(kind))))
def test_function_and_proxy_follow_each_other(case: tuple[Kind, list[tuple[str, Any]]]) -> None:
    kind, told = case
    pair = Pair(kind)
    for what, argument in told:
        if what == "told":
            pair.told(*argument)
            continue
        view, before = pair.look(), plain(pair.look())
        for change in argument:
            change(view)
        if what == "answered":
            seen = plain(view)
            pair.answered(view)
            assert plain(pair.look()) == plain(view) == seen
        else:
            view._forget()
            assert plain(pair.look()) == plain(view) == before


@settings(max_examples=300, deadline=None)
@given(kinds().flatmap(lambda kind: st.tuples(st.just(kind), *[st.lists(changes(kind), max_size=6)] * 3)))
def test_commands_at_the_same_time_do_not_disturb_each_other(case: tuple[Kind, Program, Program, Program]) -> None:
    kind, first, *programs = case
    pair = Pair(kind)
    view = pair.look()
    for change in first:
        change(view)
    pair.answered(view)
    before = plain(pair.look())
    one, two = pair.look(), pair.look()
    for view, program in zip((one, two), programs, strict=True):
        for change in program:
            change(view)
        assert plain(pair.look()) == before
    pair.answered(two)
    pair.answered(one)


@settings(max_examples=200, deadline=None)
@given(kinds().flatmap(lambda kind: st.tuples(st.just(kind), st.lists(changes(kind), max_size=4), st.lists(changes(kind), max_size=6))))
def test_a_delta_applied_to_a_copy_gives_the_same_value(case: tuple[Kind, Program, Program]) -> None:
    kind, first, second = case
    value = KINDS[kind]()
    for change in first:
        change(value)
    value._commit()
    held = copy.deepcopy(value._held)
    for change in second:
        change(value)
    delta = value._delta()
    if value._changed() and "vote" not in str(delta):
        held.apply(delta)
        assert plain(KINDS[kind](held=held)) == plain(value)


@given(kinds().flatmap(lambda kind: st.tuples(st.just(kind), st.lists(changes(kind), max_size=6))))
def test_what_shows_is_told(case: tuple[Kind, Program]) -> None:
    kind, program = case
    value = KINDS[kind]()
    before = plain(value)
    for change in program:
        change(value)
    assert value._changed() or plain(value) == before
