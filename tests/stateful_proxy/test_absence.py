"""Commands wait while the function is away: until it is back, their caller leaves, or their time is over."""

from __future__ import annotations

from typing import Any

import pytest

from cloudstate_core.transport.api import Status
from stateful_proxy import absence
from stateful_proxy.absence import HOLD_LIMIT, Absence
from stateful_proxy.callers import Callers


@pytest.fixture
def away(transport: Any) -> Absence:
    made = Absence(transport, Callers(transport))
    made.changed("the function is away")
    return made


def test_all_go_on_in_their_order_when_the_function_is_back(away: Absence) -> None:
    resumed: list[int] = []
    for call in (3, 1, 2):
        away.hold(call, "/t.S/M", lambda call=call: resumed.append(call))
    away.changed("still away")
    assert (resumed, away.waiting) == ([], 3)
    away.changed("")
    assert (resumed, away.waiting) == ([3, 1, 2], 0)


def test_one_whose_time_is_over_is_told_why(away: Absence, transport: Any) -> None:
    away.hold(1, "/t.S/M", lambda: pytest.fail("went on"))
    assert transport.fire() == [HOLD_LIMIT]
    answer = transport.answers[1]
    assert (answer.status, answer.text) == (Status.UNAVAILABLE, "/t.S/M: not executed: the function is away")
    away.changed("")


def test_a_time_that_is_over_ends_nothing_that_went_on(away: Absence, transport: Any) -> None:
    away.hold(1, "/t.S/M", lambda: None)
    away.changed("")
    away.changed("away again")
    away.hold(1, "/t.S/M", lambda: None)
    transport.timers = transport.timers[:1]  # the first one's
    transport.fire()
    assert (transport.answers, away.waiting) == ({}, 1)


def test_a_caller_who_left_is_forgotten(away: Absence) -> None:
    away.hold(1, "/t.S/M", lambda: pytest.fail("went on"))
    assert away.withdraw(1)
    assert not away.withdraw(1)
    away.changed("")


def test_no_more_than_so_many_wait(away: Absence, transport: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(absence, "MAX_HELD", 2)
    for call in (1, 2, 3):
        away.hold(call, "/t.S/M", lambda: None)
    assert [call for call, answer in transport.answers.items() if answer.status == Status.RESOURCE_EXHAUSTED] == [3]


def test_a_function_that_will_not_be_back_refuses_them_so_that_others_take_them(away: Absence, transport: Any) -> None:
    away.hold(1, "/t.S/M", lambda: pytest.fail("went on"))
    away.changed("came back as another", final=True)
    assert (transport.answers[1].status, transport.answers[1].refused) == (Status.UNAVAILABLE, True)


def test_one_that_comes_after_that_is_refused_as_well(away: Absence, transport: Any) -> None:
    """A proxy that ends is sent commands until its shards have moved: there is no time to wait for the function in."""
    away.changed("", final=True)
    away.changed("the function has gone first")
    away.hold(1, "/t.S/M", lambda: pytest.fail("went on"))
    assert (transport.answers[1].status, transport.answers[1].refused, away.waiting) == (Status.UNAVAILABLE, True, 0)
