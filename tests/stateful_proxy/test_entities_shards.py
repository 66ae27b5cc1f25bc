"""Entities whose shard leaves, entities that share the few streams of a function, and functions that do not answer."""

from __future__ import annotations

import time
from typing import Any

import pytest

from cloudstate_core.transport.api import Status

# Shards -----------------------------------------------------------------------------------------------------------------


def test_drain_finishes_what_is_in_flight_and_refuses_the_rest(bench: Any) -> None:
    drained: list[bool] = []
    idle, busy, waiting = bench.call(entity="idle"), bench.call(entity="busy"), bench.call(entity="busy")
    bench.reply(1, 1)
    other = bench.call(entity="elsewhere", shard=1)
    bench.entities.drain_shard(0, lambda: drained.append(True))
    assert bench.transport.answers[idle].status == 0
    assert bench.transport.answers[waiting].refused
    assert bench.transport.streams[1].half_closed
    assert not drained
    late = bench.call(entity="busy")
    assert bench.transport.answers[late].refused
    bench.reply(2, 1, b"sum", [b"e"])
    assert bench.transport.answers[busy].body == b"sum"
    assert drained == [True]
    assert other not in bench.transport.answers
    assert bench.entities.active == 1


def test_what_is_not_executed_is_given_back_to_be_routed_again(bench: Any) -> None:
    taken: list[int] = []

    def reroute(command: Any) -> bool:
        taken.append(command.call)
        return command.call != refused

    bench.entities.route_again(reroute)
    busy, waiting, refused, gone = (bench.call() for _ in range(4))
    assert bench.entities.cancelled(gone)
    bench.entities.drain_shard(0, lambda: None)
    late = bench.call()
    bench.entities.drop_shard(0)
    assert taken == [waiting, refused, late, busy]
    assert bench.transport.answers.keys() == {refused}
    assert bench.transport.answers[refused].refused


def test_draining_an_empty_shard_is_done_at_once(bench: Any) -> None:
    drained: list[bool] = []
    bench.entities.drain_shard(3, lambda: drained.append(True))
    assert drained == [True]


def test_drop_resets_streams_and_refuses(bench: Any) -> None:
    call, waiting = bench.call(), bench.call()
    bench.entities.drop_shard(0)
    assert bench.transport.answers[call].refused
    assert bench.transport.answers[waiting].refused
    assert bench.transport.streams[1].reset
    assert bench.entities.active == 0


def test_a_late_activation_of_a_dropped_entity_does_not_touch_its_successor(bench: Any) -> None:
    bench.journal.holding = True
    old = bench.call()
    bench.entities.drop_shard(0)
    bench.tokens[0] = bench.journal.claim(0)
    new, drained = bench.call(), []
    bench.journal.release()
    bench.batch.flush()
    assert bench.transport.answers[old].refused
    bench.entities.drain_shard(0, lambda: drained.append(True))
    assert not drained
    bench.reply(1, 1, b"sum")
    assert bench.transport.answers[new].body == b"sum"
    assert drained == [True]


def test_what_is_at_the_function_is_told_while_it_is_there_and_no_longer(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr("stateful_proxy.entities.time.monotonic", lambda: clock[0])

    def seconds(count: float) -> float:
        clock[0] += count
        bench.entities.load(clock[0])
        return float(bench.entities.function_concurrency)

    bench.entities.load(clock[0])
    bench.call(entity="a")
    bench.call(entity="a")
    bench.call(entity="b", shard=1)
    assert seconds(1) == pytest.approx(2.0), "the second command of an entity waits in the proxy, not at the function"
    clock[0] += 0.5
    bench.reply(2, 1)
    assert seconds(0.5) == pytest.approx(1.5)
    bench.reply(1, 1)
    bench.reply(1, 2)
    assert seconds(1) == 0.0, "nothing is left over of what has been answered"


# Functions that serve few streams ---------------------------------------------------------------------------------------


def test_the_entity_idle_longest_makes_room(make_bench: Any) -> None:
    bench = make_bench(streams=2)
    for stream, name in enumerate("abc", 1):
        call = bench.call(entity=name)
        bench.reply(stream, 1)
        assert bench.transport.answers[call].status == Status.OK
    assert [bench.transport.streams[n].ended for n in (1, 2, 3)] == [True, False, False]
    assert bench.entities.active == 2


def test_commands_wait_for_a_stream_while_all_are_busy_and_go_on_in_order(make_bench: Any) -> None:
    bench = make_bench(streams=1)
    first, waiting, last = bench.call(entity="a"), bench.call(entity="b"), bench.call(entity="c")
    assert list(bench.transport.streams) == [1]
    bench.reply(1, 1)
    assert bench.sent(2)[0].init.entity_id == "b"
    bench.reply(2, 1)
    bench.reply(3, 1)
    assert [bench.transport.answers[call].status for call in (first, waiting, last)] == [Status.OK] * 3


def test_an_entity_that_is_called_without_end_gives_its_place_to_those_that_wait(make_bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stateful_proxy.entities.TURN", 2)
    bench = make_bench(streams=1)
    calls = [bench.call(entity="busy") for _ in range(3)]
    waiting = bench.call(entity="other")
    bench.reply(1, 1, events=[b"1"])
    bench.reply(1, 2, events=[b"2"])
    assert bench.transport.streams[1].half_closed
    assert bench.kinds(2) == ["init", "command"]
    bench.reply(2, 1)
    assert bench.transport.answers[waiting].status == Status.OK
    assert bench.kinds(3) == ["init", "event", "event", "command"]
    bench.reply(3, 1)
    assert [bench.transport.answers[call].status for call in calls] == [Status.OK] * 3


def test_a_place_that_a_crash_frees_is_taken(make_bench: Any) -> None:
    bench = make_bench(streams=1)
    bench.call(entity="a")
    waiting = bench.call(entity="b")
    bench.closed(1)
    bench.reply(2, 1)
    assert bench.transport.answers[waiting].status == Status.OK


def test_one_whose_caller_left_takes_no_place(make_bench: Any) -> None:
    bench = make_bench(streams=1)
    bench.call(entity="a")
    gone, waiting = bench.call(entity="b"), bench.call(entity="c")
    bench.entities.cancelled(gone)
    bench.reply(1, 1)
    assert bench.sent(2)[0].init.entity_id == "c"
    bench.reply(2, 1)
    assert bench.transport.answers[waiting].status == Status.OK


@pytest.mark.parametrize("how", ["drain_shard", "drop_shard"])
def test_a_shard_that_leaves_takes_those_along_that_wait_for_a_stream(make_bench: Any, how: str) -> None:
    bench = make_bench(streams=1)
    bench.call(entity="a", shard=0)
    waiting = bench.call(entity="b", shard=1)
    drained: list[int] = []
    if how == "drain_shard":
        bench.entities.drain_shard(1, lambda: drained.append(1))
        assert drained == [1]
    else:
        bench.entities.drop_shard(1)
    assert bench.transport.answers[waiting].refused
    bench.reply(1, 1)
    assert list(bench.transport.streams) == [1]


def test_a_function_that_does_not_answer_loses_that_stream(bench: Any) -> None:
    before = time.monotonic()
    call, waiting = bench.call(), bench.call()
    bench.entities.passivate(before + 59)
    assert not bench.transport.answers
    bench.entities.passivate(time.monotonic() + 61)
    assert bench.transport.answers[call].status == Status.DEADLINE_EXCEEDED
    assert "has not answered within 60 s" in bench.transport.answers[call].text
    assert bench.transport.answers[waiting].status == Status.UNAVAILABLE
    assert bench.transport.streams[1].reset


def test_no_more_than_so_many_entities_wait_for_a_stream(make_bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stateful_proxy.residents.MOST_QUEUED", 2)
    bench = make_bench(streams=1)
    calls = [bench.call(entity=name) for name in "abcd"]
    assert bench.transport.answers[calls[3]].status == Status.RESOURCE_EXHAUSTED
    again = bench.call(entity="b")
    bench.reply(1, 1)
    bench.reply(2, 1)
    bench.reply(2, 2)
    assert [bench.transport.answers[call].status for call in (calls[0], calls[1], again)] == [Status.OK] * 3
    bench.reply(3, 1)
    assert bench.transport.answers[calls[2]].status == Status.OK
