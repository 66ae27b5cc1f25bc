"""Streamed calls on a replicated entity, and what answers ask for besides: forwards, side effects, failures."""

from __future__ import annotations

from cloudstate_core.journal.api import Read, Refused
from cloudstate_core.pb.cloudstate import crdt_pb2 as pb
from cloudstate_core.pb.cloudstate import entity_pb2
from cloudstate_core.transport.api import Status
from stateful_proxy.crdt.cancellations import CANCEL_LIMIT
from tests.stateful_proxy.crdt.bench import CrdtBench, elsewhere, hear, plus, text

# Streams ----------------------------------------------------------------------------------------------------------------


def test_a_streamed_command_gets_messages_until_the_function_ends_it(bench: CrdtBench) -> None:
    call = bench.call("Watch")
    bench.reply(1, 1, body=b"first", streamed=True)
    bench.stream_message(1, 1, b"second")
    bench.stream_message(1, 1, None)
    bench.stream_message(1, 1, b"third", end=True)
    assert bench.transport.messages[call] == [b"first", b"second", b"third"]
    assert bench.told(call) == (0, "")
    assert bench.kinds(1) == ["init", "command"]


def test_a_streamed_command_that_the_function_does_not_keep_gets_one_message(bench: CrdtBench) -> None:
    one, two = bench.call("Watch"), bench.call("Watch")
    bench.reply(1, 1, body=b"only")
    bench.reply(1, 2, body=None)
    assert bench.transport.messages == {one: [b"only"]}
    assert (bench.told(one), bench.told(two)) == ((0, ""), (0, ""))


def test_messages_wait_for_the_update_of_the_reply(bench: CrdtBench) -> None:
    call = bench.call("Watch")
    bench.journal.holding = True
    bench.reply(1, 1, plus(1), b"first", streamed=True)
    bench.stream_message(1, 1, b"second", end=True)
    assert call not in bench.transport.messages
    bench.journal.release()
    assert bench.transport.messages[call] == [b"first", b"second"]
    assert bench.told(call) == (0, "")


def test_a_cancelled_call_is_told_once_and_may_change_the_value(bench: CrdtBench) -> None:
    call = bench.call("Watch")
    bench.reply(1, 1, plus(1), None, streamed=True)
    bench.hang_up(call)
    cancelled = bench.sent(1)[-1].stream_cancelled
    assert (cancelled.entity_id, cancelled.id) == ("a", 1)
    bench.stream_message(1, 1, b"too late")
    bench.answer_cancellation(1, 1, plus(-1))
    bench.fire()
    assert bench.kinds(1) == ["init", "command", "stream_cancelled"]
    assert bench.stored().state.context["me"] == 2
    assert call not in bench.transport.messages


def test_a_call_that_is_cancelled_before_its_reply_is_told_after_it(bench: CrdtBench) -> None:
    gone, kept = bench.call("Watch"), bench.call("Watch")
    bench.hang_up(gone)
    assert bench.kinds(1) == ["init", "command", "command"]
    bench.reply(1, 1, streamed=True)
    assert bench.kinds(1)[-1] == "stream_cancelled"
    bench.reply(1, 2, streamed=True)
    assert kept not in bench.transport.answers


def test_a_call_that_the_function_has_ended_is_not_cancelled(bench: CrdtBench) -> None:
    one, two = bench.call("Watch"), bench.call("Watch")
    bench.reply(1, 1)
    bench.hang_up(two)
    bench.reply(1, 2)
    bench.hang_up(one)
    assert bench.kinds(1) == ["init", "command", "command"]


def test_deltas_wait_for_the_answer_to_a_cancellation(pair: tuple[CrdtBench, CrdtBench]) -> None:
    one, two = pair
    call = one.call("Watch")
    one.reply(1, 1, plus(1), streamed=True)
    one.hang_up(call)
    elsewhere(one, two, plus(4))
    hear(one)
    assert one.deltas(1) == []
    one.answer_cancellation(1, 1, plus(-1))
    assert one.deltas(1) == [plus(4)]


def test_but_not_for_ever_and_a_late_answer_counts(pair: tuple[CrdtBench, CrdtBench]) -> None:
    one, two = pair
    call = one.call("Watch")
    one.reply(1, 1, plus(1), streamed=True)
    one.hang_up(call)
    elsewhere(one, two, plus(4))
    hear(one)
    one.fire_only(CANCEL_LIMIT)
    assert one.deltas(1) == [plus(4)]
    one.answer_cancellation(1, 1, plus(-1))
    elsewhere(one, two, plus(1))
    hear(one)
    assert one.deltas(1) == [plus(4), plus(1)]
    assert not one.transport.streams[1].ended


def test_a_failure_within_a_stream_ends_the_call_and_is_told_as_a_cancellation(bench: CrdtBench) -> None:
    call = bench.call("Watch")
    bench.reply(1, 1, streamed=True)
    bench.stream_message(1, 1, failure="no more")
    assert bench.told(call) == (Status.UNKNOWN, "no more")
    assert bench.kinds(1)[-1] == "stream_cancelled"


def test_a_failure_of_a_stream_may_cross_with_its_cancellation_which_is_answered_besides(bench: CrdtBench) -> None:
    call, other = bench.call("Watch"), bench.call("Watch")
    bench.reply(1, 1, streamed=True)
    bench.reply(1, 2, streamed=True)
    bench.hang_up(call)
    bench.say(1, failure=entity_pb2.Failure(command_id=1, description="cannot tell a change"))
    bench.answer_cancellation(1, 1, plus(-1))
    assert not bench.transport.streams[1].ended
    assert other not in bench.transport.answers
    assert bench.stored().state.context["me"] == 1


def test_a_failure_that_ends_the_stream_is_the_end(bench: CrdtBench) -> None:
    call = bench.call("Watch")
    bench.reply(1, 1, streamed=True)
    bench.stream_message(1, 1, failure="no more", end=True)
    assert bench.told(call) == (Status.UNKNOWN, "no more")
    assert bench.kinds(1) == ["init", "command"]


def test_a_proxy_that_stops_ends_open_calls_normally_and_lets_the_function_answer(bench: CrdtBench) -> None:
    left: list[bool] = []
    call = bench.call("Watch")
    bench.reply(1, 1, plus(1), streamed=True)
    bench.crdts.leave(lambda: left.append(True))
    assert bench.told(call) == (0, "")
    assert bench.kinds(1)[-1] == "stream_cancelled"
    assert not left
    bench.answer_cancellation(1, 1, plus(-1))
    assert left == [True]
    assert bench.transport.streams[1].half_closed
    refused = bench.call()
    assert bench.transport.answers[refused].refused


def test_a_call_whose_reply_comes_while_the_proxy_stops_is_ended_too(bench: CrdtBench) -> None:
    left: list[bool] = []
    call = bench.call("Watch")
    bench.crdts.leave(lambda: left.append(True))
    bench.reply(1, 1, body=b"first", streamed=True)
    assert (bench.transport.messages[call], bench.told(call)) == ([b"first"], (0, ""))
    assert bench.kinds(1)[-1] == "stream_cancelled"
    bench.answer_cancellation(1, 1)
    assert left == [True]


# Client actions ---------------------------------------------------------------------------------------------------------


def test_a_deliberate_failure_keeps_stream_and_value(bench: CrdtBench) -> None:
    call = bench.call()
    bench.reply(1, 1, failure="not so")
    assert bench.told(call) == (Status.UNKNOWN, "not so")
    bench.call()
    assert bench.kinds(1) == ["init", "command", "command"]


def test_no_client_action_is_an_error_for_a_unary_caller(bench: CrdtBench) -> None:
    call = bench.call()
    bench.reply(1, 1, body=None)
    assert bench.told(call)[0] == Status.UNKNOWN


def test_effects_then_forward_after_the_update_is_stored(bench: CrdtBench) -> None:
    call = bench.call()
    effect = entity_pb2.SideEffect(service_name="test.Presence", command_name="Add", payload=text("e"))
    forward = entity_pb2.Forward(service_name="test.Presence", command_name="Add", payload=text("f"))
    bench.journal.holding = True
    bench.reply(1, 1, plus(1), forward=forward, effects=[effect])
    assert bench.invoked == []
    bench.journal.release()
    assert [(number == call, invocation.payload) for number, invocation in bench.invoked] == [(False, b"e"), (True, b"f")]


def test_a_forward_within_a_stream_is_a_message_of_it(bench: CrdtBench) -> None:
    call = bench.call("Watch")
    bench.reply(1, 1, body=b"first", streamed=True)
    forward = entity_pb2.Forward(service_name="test.Presence", command_name="Add", payload=text("f"))
    bench.stream_message(1, 1, forward=forward)
    bench.stream_message(1, 1, b"third", end=True)
    assert bench.transport.messages[call] == [b"first"]
    bench.callers.reply(bench.invoked[0][0], b"second")
    assert bench.transport.messages[call] == [b"first", b"second", b"third"]
    assert bench.told(call) == (0, "")


def test_an_answer_of_another_type_is_passed_on_and_reported(bench: CrdtBench) -> None:
    call = bench.call()
    action = entity_pb2.ClientAction(reply=entity_pb2.Reply(payload=text("x")))
    bench.say(1, reply=pb.CrdtReply(command_id=1, client_action=action))
    assert bench.transport.answers[call].body == b"x"
    assert "Expected reply type_url to be [type.googleapis.com/test.Told]" in bench.reported[0]


def test_a_caller_of_an_earlier_stream_who_leaves_takes_no_other_call_along(bench: CrdtBench) -> None:
    gone = bench.call("Watch")
    bench.journal.holding = True
    bench.reply(1, 1, plus(1))
    bench.closed(1)
    stays = bench.call("Watch")
    bench.reply(2, 1, body=b"first", streamed=True)
    bench.hang_up(gone)
    assert bench.kinds(2) == ["init", "command"]
    bench.stream_message(2, 1, b"second", end=True)
    assert bench.transport.messages[stays] == [b"first", b"second"]
    assert bench.told(stays) == (0, "")


def test_a_key_whose_last_look_at_the_journal_fails_leaves_memory(pair: tuple[CrdtBench, CrdtBench]) -> None:
    one, _ = pair
    one.call()
    one.reply(1, 1)
    one.journal.fail(Read, Refused("full"))
    one.journal.holding = True
    hear(one)
    one.closed(1)
    assert one.crdts.active == 1
    one.journal.release()
    one.batch.flush()
    assert one.crdts.active == 0
