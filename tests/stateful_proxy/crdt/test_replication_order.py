"""What proxies tell each other when members come and go, the journal is away, and news comes meanwhile."""

from __future__ import annotations

from collections.abc import Callable

from cloudstate_core.journal.api import EntityKey, Outcome, Read, Refused, Stored, Swap
from cloudstate_core.pb.cloudstate import crdt_pb2 as pb
from cloudstate_core.transport.api import Status
from stateful_proxy.crdt import replication
from stateful_proxy.crdt.keeper import RACE_LAST, RETRY_LAST, Keeper, Ports
from stateful_proxy.crdt.replica import Operation
from stateful_proxy.crdt.storing import STORE_LIMIT
from tests.stateful_proxy.crdt.bench import KEY, CrdtBench, plus
from tests.stateful_proxy.crdt.test_replication import acknowledge, change_of, pushed, request_of, unacknowledged, updated


def test_news_in_an_outage_do_not_make_it_ask_the_journal_more_often() -> None:
    bench = CrdtBench()
    updated(bench, plus(1))
    bench.journal.fail(Swap, Refused("down"))
    updated(bench, plus(1))
    for _ in range(9):
        bench.journal.fail(Read, Refused("down"))
    bench.crdts.received(900, request_of(change_of(7)))
    bench.batch.flush()
    bench.fire_only(RETRY_LAST)
    assert bench.transport.answers[900].status == 0
    assert len([delay for delay, _ in bench.transport.timers if delay <= RETRY_LAST]) == 1


class Nobody:
    """Serves a key that nobody calls."""

    def loaded(self, problem: str) -> None:
        """See Listener."""

    def changed(self) -> None:
        """See Listener."""

    def idle(self) -> None:
        """See Listener."""


def test_news_between_lost_races_are_read_by_the_one_request_that_there_is() -> None:
    asked: list[Callable[[Outcome], None]] = []
    timers: list[Callable[[], None]] = []
    ports = Ports(
        lambda operation, handler: asked.append(handler),
        lambda seconds, then: timers.append(then),
        lambda *news: None,
        lambda: frozenset({"me"}),
    )
    keeper = Keeper(KEY, 0, "me", ports)
    keeper.start(Nobody())
    asked.pop()(Stored(0, None))
    operation = keeper.replica.update(plus(1), 1)
    assert isinstance(operation, Operation)
    keeper.keep(operation, lambda version, reason: None)
    for version in (1, 2):
        asked.pop()(Stored(version, None))
    keeper.hear_of(9, lambda: None)
    asked.pop()(Stored(3, None))
    for over in timers:
        over()
    assert len(asked) == 1


def test_news_that_wait_for_a_pause_are_acknowledged_when_it_ends_with_nothing_to_do() -> None:
    bench = CrdtBench()
    updated(bench, plus(1))
    for _ in range(3):
        bench.journal.fail(Swap, bench.journal_has())
    updated(bench, plus(1))
    bench.crdts.received(900, request_of(change_of(2)))
    bench.crdts.received(901, request_of(change_of(3, deleted=True)))
    bench.batch.flush()
    assert 900 not in bench.transport.answers
    bench.fire_only(RACE_LAST)
    assert bench.transport.answers[900].status == 0


def test_requests_to_a_proxy_that_was_away_for_a_moment_are_bounded() -> None:
    bench = CrdtBench(others=["b"])

    def publish(keys: range) -> None:
        for number in keys:
            bench.replication.publish(EntityKey("presence", str(number)), 1, b"")
            bench.fire_only(0.0)

    publish(range(20))
    before = unacknowledged(bench)
    for others in ((), ("b",)):
        bench.peers.others = frozenset(others)
        bench.crdts.members_changed()
    publish(range(20, 21))
    for request in before:
        acknowledge(bench, request)
    publish(range(21, 41))
    assert len(unacknowledged(bench)) == replication.MAX_IN_FLIGHT


def test_requests_that_fail_together_fail_once() -> None:
    bench = CrdtBench(others=["b"])
    for number in range(replication.MAX_IN_FLIGHT):
        bench.replication.publish(EntityKey("presence", str(number)), 1, b"")
        bench.fire_only(0.0)
    for request in unacknowledged(bench):
        acknowledge(bench, request, Status.UNAVAILABLE)
    for _ in range(2):  # the pause, and what is sent after it
        bench.fire()
    [again] = unacknowledged(bench)
    assert len(pushed(bench, again)) == replication.MAX_IN_FLIGHT


def test_nobody_is_waited_for_on_behalf_of_a_caller_who_was_told_that_the_journal_is_away() -> None:
    bench = CrdtBench(others=["b"])
    bench.journal.fail(Swap, Refused("down"))
    call = updated(bench, plus(1), pb.ALL)
    bench.fire_only(STORE_LIMIT)
    assert bench.told(call)[0] == Status.UNAVAILABLE
    assert bench.journal_has().version == 1
    bench.fire()
    requests = len(bench.requests())
    bench.peers.others, bench.peers.known = frozenset("bc"), {"b": 100, "c": 101}
    bench.crdts.members_changed()
    bench.fire_only(0.0)
    assert len(bench.requests()) == requests
