"""How a consumer goes through a log: in order, nothing skipped, the cursor never beyond what was handled."""

from __future__ import annotations

import random
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudstate_core.journal.api import LogEntry, Value
from stateful_proxy.eventing.progress import Action, Deliver, Progress, ReadCursor, ReadPage, Rest, Save

LOG = [LogEntry(3 * n + 1, "ann", n + 1, Value("t", b"")) for n in range(100)]


def started(cursor: int = 0, now: float = 0.0) -> Progress:
    progress = Progress()
    assert progress.begin() == [ReadCursor()]
    assert progress.cursor_is(cursor, now) == [ReadPage(cursor)]
    return progress


def test_events_are_given_out_one_at_a_time() -> None:
    progress = started()
    assert progress.page_is(LOG[:2], full=False) == [Deliver(LOG[0])]
    assert progress.woken() == []
    assert progress.was_handled(0.1) == [Deliver(LOG[1])]
    assert progress.was_handled(0.2) == [ReadPage(LOG[1].offset)], "it was woken meanwhile"
    assert progress.page_is([], full=False) == []
    assert progress.woken() == [ReadPage(LOG[1].offset)]


def test_a_full_page_is_followed_by_the_next() -> None:
    progress = started()
    assert progress.page_is(LOG[:1], full=True) == [Deliver(LOG[0])]
    assert progress.was_handled(0.1) == [ReadPage(LOG[0].offset)]


def test_the_cursor_is_saved_after_twenty_events_or_a_second() -> None:
    progress = started()
    actions = progress.page_is(LOG[:50], full=False)
    saved: list[tuple[int, Save]] = []
    for number in range(1, 51):
        actions = progress.was_handled(0.0)
        saved += [(number, action) for action in actions if isinstance(action, Save)]
    assert saved == [(20, Save(LOG[19].offset)), (40, Save(LOG[39].offset))]
    assert progress.tick(0.9) == []
    assert progress.tick(1.0) == [Save(LOG[49].offset)]
    assert progress.tick(9.0) == progress.leave() == [], "there is nothing new"


def test_a_shard_that_is_given_up_is_left_with_its_cursor_saved() -> None:
    progress = started()
    progress.page_is(LOG[:3], full=False)
    progress.was_handled(0.0)
    assert progress.leave() == [Save(LOG[0].offset)]


def test_a_cursor_that_was_not_saved_is_saved_with_the_next() -> None:
    progress = started()
    progress.page_is(LOG[:1], full=False)
    assert progress.was_handled(1.0) == [Save(LOG[0].offset)]
    progress.save_failed()
    assert progress.tick(2.0) == [Save(LOG[0].offset)]


def test_failures_are_followed_by_ever_longer_rests_and_the_same_event() -> None:
    progress = started()
    progress.page_is(LOG[:1], full=False)
    rests = []
    for _ in range(6):
        (rest,) = progress.has_failed(0.5)
        assert isinstance(rest, Rest)
        rests.append(rest.seconds)
        assert progress.rested() == [Deliver(LOG[0])]
    assert rests == [3.0, 6.0, 12.0, 24.0, 30.0, 30.0]
    progress.was_handled(0.0)
    progress.page_is(LOG[1:2], full=False)
    assert progress.has_failed(0.5) == [Rest(3.0)], "a success ends it"


@pytest.mark.parametrize(("chance", "seconds"), [(0.0, 2.4), (0.5, 3.0), (1.0, 3.6)])
def test_rests_are_spread(chance: float, seconds: float) -> None:
    assert started().has_failed(chance) == [Rest(pytest.approx(seconds))]


def test_a_journal_that_does_not_answer_is_asked_again() -> None:
    progress = Progress()
    progress.begin()
    progress.has_failed(0.5)
    assert progress.rested() == [ReadCursor()]
    progress.cursor_is(7, 0.0)
    progress.has_failed(0.5)
    assert progress.rested() == [ReadPage(7)]


class Consumer:
    """Carries actions out as a driver does, with failures, wakes at any time, and ends without a word."""

    def __init__(self, choose: random.Random) -> None:
        self.choose, self.log, self.saved, self.handled, self.now = choose, list(LOG[:3]), 0, list[int](), 0.0

    def live(self, steps: int) -> bool:
        """One life of a consumer; True when it has come to the end of the log."""
        progress = Progress()
        waiting: deque[Action] = deque(progress.begin())
        for _ in range(steps):
            self.now += 0.3
            if self.choose.random() < 0.2 and len(self.log) < len(LOG):
                self.log.append(LOG[len(self.log)])
                waiting += progress.woken()
            waiting += progress.tick(self.now)
            if not waiting:
                return len(self.log) == len(LOG)
            assert sum(not isinstance(action, Save) for action in waiting) <= 1
            waiting += self.carry_out(progress, waiting.popleft())
        return False

    def carry_out(self, progress: Progress, action: Action) -> list[Action]:
        fails = self.choose.random() < 0.15
        match action:
            case Rest():
                return progress.rested()
            case Save(offset):
                assert offset <= max(self.handled), "never beyond what was handled"
                if fails:
                    progress.save_failed()
                else:
                    self.saved = max(self.saved, offset)
                return []
            case _ if fails:
                return progress.has_failed(0.5)
            case ReadCursor():
                return progress.cursor_is(self.saved, self.now)
            case ReadPage(after):
                page = [entry for entry in self.log if entry.offset > after][:4]
                return progress.page_is(page, len(page) == 4)
            case Deliver(entry):
                self.handled.append(entry.offset)
                return progress.was_handled(self.now)


@given(seed=st.integers(0, 2**32), steps=st.integers(5, 200))
def test_everything_is_handled_at_least_once_in_order_whatever_fails(seed: int, steps: int) -> None:
    consumer = Consumer(random.Random(seed))
    for _ in range(500):
        begun, cursor = len(consumer.handled), consumer.saved
        done = consumer.live(steps)
        life = consumer.handled[begun:]
        assert life == [e.offset for e in LOG if e.offset > cursor][: len(life)], "without gaps, from the cursor on"
        if done:
            break
        steps += 10
    assert set(consumer.handled) == {entry.offset for entry in LOG}
