"""What happens in the midst of something else: a call that comes while a stream ends, and many answers that waited for one."""

from __future__ import annotations

import time

from cloudstate_core.journal.api import Read, Refused, Swap
from cloudstate_core.pb.cloudstate import entity_pb2
from cloudstate_core.transport.api import Status
from stateful_proxy.crdt.delivery import MAX_STEPS
from stateful_proxy.follow_ups import Origin
from tests.stateful_proxy.crdt.bench import CrdtBench, adding, method_of, plus

EFFECT = entity_pb2.SideEffect(service_name="test.Presence", command_name="Add", synchronous=True)


def two_in_a_row(bench: CrdtBench) -> list[str]:
    """A command elsewhere asks for two synchronous side effects on the key; what it hears in the end."""
    heard = list[str]()
    bench.follow_ups.invoke = lambda call, invocation: bench.crdts.command(call, invocation, "a")
    bench.follow_ups.run(Origin(99, method_of("Add"), (), ""), [EFFECT, EFFECT], lambda: heard.append("both have ended"))
    bench.batch.flush()
    return heard


def test_a_call_that_comes_while_a_stream_fails_gets_the_next_one(bench: CrdtBench) -> None:
    heard = two_in_a_row(bench)
    bench.closed(1, Status.UNKNOWN, "gone")
    assert bench.kinds(1) == ["init", "command"]
    assert bench.kinds(2) == ["init", "command"]
    bench.reply(2, 1)
    assert heard == ["both have ended"]
    bench.crdts.concurrency(time.monotonic())
    assert bench.crdts.concurrency(time.monotonic() + 1) == 0


def test_a_call_that_comes_while_a_change_is_found_not_to_fit_gets_the_next_stream(bench: CrdtBench) -> None:
    bench.call()
    bench.reply(1, 1, plus(1))
    two_in_a_row(bench)
    bench.reply(1, 2, adding("a"))
    assert bench.kinds(1) == ["init", "command", "command"]
    assert bench.kinds(2) == ["init", "command"]


def test_a_call_waits_for_a_deletion_whose_stream_has_ended(bench: CrdtBench) -> None:
    bench.call()
    bench.reply(1, 1, plus(5))
    bench.journal.fail(Swap, Refused("down"))
    deleting = bench.call()
    bench.reply(1, 2, delete=True)
    bench.closed(1, Status.UNKNOWN, "gone")
    after = bench.call()
    assert len(bench.transport.streams) == 1
    bench.fire_only(0.1)
    assert bench.told(deleting)[0] == 0
    assert not bench.sent(2)[0].init.HasField("delta")
    bench.reply(2, 1, plus(1))
    assert bench.told(after)[0] == 0
    assert bench.stored() is not None


def test_a_call_that_comes_while_others_hear_that_the_key_cannot_be_read_waits_for_the_next_reading(bench: CrdtBench) -> None:
    bench.call()
    bench.reply(1, 1, plus(5))
    bench.later(60)
    bench.journal.fail(Read, Refused("down"))
    two_in_a_row(bench)
    init, command = bench.sent(2)
    assert init.init.delta.pncounter.change == 5
    assert command.HasField("command")


def test_many_answers_behind_an_effect(bench: CrdtBench) -> None:
    call = bench.call("Watch")
    bench.reply(1, 1, body=b"0", streamed=True, effects=[EFFECT])
    for n in range(1, MAX_STEPS):
        bench.stream_message(1, 1, b"%d" % n)
    bench.callers.reply(bench.invoked[0][0], b"")
    assert [int(message) for message in bench.transport.messages[call]] == list(range(MAX_STEPS))


def test_a_forward_that_many_answers_wait_for_in_vain_is_given_up_with_the_call(bench: CrdtBench) -> None:
    given_up: list[int] = []
    bench.follow_ups.cancel = given_up.append
    call = bench.call("Watch")
    bench.reply(1, 1, body=b"0", streamed=True)
    bench.stream_message(1, 1, forward=entity_pb2.Forward(service_name="test.Presence", command_name="Watch"))
    for n in range(MAX_STEPS + 1):
        bench.stream_message(1, 1, b"%d" % n)
    assert bench.told(call)[0] == Status.RESOURCE_EXHAUSTED
    assert given_up == [bench.invoked[0][0]]
