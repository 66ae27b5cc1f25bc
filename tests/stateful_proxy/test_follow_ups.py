"""Side effects and forwards: in which order, to whom, how often, and what becomes of the command that asked."""

from __future__ import annotations

from typing import Any

import pytest

from cloudstate_core.journal.api import Append, EntityKey, Fenced, Lookup
from cloudstate_core.pb.cloudstate import entity_pb2, event_sourced_pb2
from cloudstate_core.transport.api import Status
from stateful_proxy.follow_ups import EFFECT_LIMIT, MAX_CHAIN, Origin
from stateful_proxy.service import ACTION, MethodInfo

TARGET = MethodInfo("/test.Two/Call", "test.Two", "Call", "two", ACTION, "test.In", "test.Out", (), "", None, owned=False)


@pytest.fixture(autouse=True)
def target(bench: Any) -> None:
    bench.methods[TARGET.path] = TARGET


def reply(command_id: int = 1, forward: str = "", effects: tuple[tuple[str, bool], ...] = (), events: tuple[bytes, ...] = ()) -> Any:
    """An answer of the function; `forward` and effects go to test.Two with these payloads."""
    out = event_sourced_pb2.EventSourcedStreamOut()
    out.reply.command_id = command_id
    if forward:
        to = out.reply.client_action.forward
        to.service_name, to.command_name, to.payload.value = "test.Two", "Call", forward.encode()
    else:
        told = out.reply.client_action.reply.payload
        told.type_url, told.value = "type.googleapis.com/test.Sum", b"ok"
    for payload, synchronous in effects:
        effect = out.reply.side_effects.add(service_name="test.Two", command_name="Call", synchronous=synchronous)
        effect.payload.value = payload.encode()
    for event in events:
        out.reply.events.add(value=event)
    return out


def asked(bench: Any) -> list[bytes]:
    return [invocation.payload for _, invocation in bench.invoked]


def test_effects_start_in_order_and_do_not_hold_the_answer(bench: Any) -> None:
    call = bench.call()
    bench.say(1, reply(effects=(("a", False), ("b", False))))
    assert asked(bench) == [b"a", b"b"]
    assert bench.transport.answers[call].body == b"ok"


def test_an_effect_waits_for_the_events_that_it_follows(bench: Any) -> None:
    bench.journal.holding = False
    bench.call()
    bench.journal.holding = True
    bench.say(1, reply(effects=(("a", False),), events=(b"e",)))
    assert asked(bench) == []
    bench.journal.release()
    assert asked(bench) == [b"a"]


def test_synchronous_effects_are_awaited_one_after_another(bench: Any) -> None:
    call = bench.call()
    bench.say(1, reply(effects=(("a", True), ("b", False), ("c", True))))
    assert asked(bench) == [b"a"]
    bench.callers.finish(bench.invoked[0][0], Status.UNKNOWN, "an effect that fails")
    assert asked(bench) == [b"a", b"b", b"c"]
    assert call not in bench.transport.answers
    bench.callers.reply(bench.invoked[2][0], b"whatever")
    assert bench.transport.answers[call].body == b"ok"


def test_the_entity_takes_the_next_command_while_an_effect_is_awaited(bench: Any) -> None:
    bench.call()
    second = bench.call(b"second")
    bench.say(1, reply(effects=(("a", True),)))
    assert bench.sent(1)[2].command.payload.value == b"second"
    bench.say(1, reply(2))
    assert bench.transport.answers[second].body == b"ok"


def test_an_effect_that_never_ends_is_not_awaited_for_ever(bench: Any) -> None:
    call = bench.call()
    bench.say(1, reply(effects=(("a", True),)))
    batches = bench.journal.batches
    bench.batch.ask(Lookup(0, EntityKey("counter", "a"), "x"), lambda outcome: None)
    assert bench.transport.fire() == [EFFECT_LIMIT]
    assert bench.transport.answers[call].body == b"ok"
    assert bench.journal.batches == batches + 1, "what goes on then does not wait for other events"
    bench.callers.finish(bench.invoked[0][0], Status.OK)


def test_an_effect_on_nobody_is_reported_and_changes_nothing(bench: Any) -> None:
    call = bench.call()
    out = reply(effects=(("a", True),))
    out.reply.side_effects[0].command_name = "Nope"
    bench.say(1, out)
    assert bench.transport.answers[call].body == b"ok"
    assert bench.reported[-1] == "/test.Counter/Add: side effect to test.Two.Nope: the function has no such method"


def test_a_forward_answers_the_caller_from_elsewhere(bench: Any) -> None:
    call = bench.call(command_id="c1")
    bench.say(1, reply(forward="x", effects=(("first", False),), events=(b"e",)))
    assert asked(bench) == [b"first", b"x"]
    assert bench.history() == [b"e"]
    number, invocation = bench.invoked[1]
    assert (number, invocation.method, invocation.chain, invocation.command_id) == (call, TARGET, ("/test.Counter/Add",), "c1/f")
    assert bench.invoked[0][1].command_id == "c1/0"
    bench.callers.reply(call, b"from two")
    assert bench.transport.answers[call].body == b"from two"


def test_a_forward_to_nobody_fails_that_call_alone(bench: Any) -> None:
    call, other = bench.call(), bench.call()
    out = reply(forward="x")
    out.reply.client_action.forward.service_name = "test.Nobody"
    bench.say(1, out)
    bench.say(1, reply(2))
    assert (bench.transport.answers[call].status, bench.transport.answers[other].body) == (Status.UNKNOWN, b"ok")
    assert "forwarded to test.Nobody.Call" in bench.transport.answers[call].text
    assert "/test.Counter/Add: forward to test.Nobody.Call" in bench.reported[-1]


def test_a_repeated_command_that_was_forwarded_is_forwarded_again(bench: Any) -> None:
    bench.call(command_id="c1")
    bench.say(1, reply(forward="x", events=(b"e",)))
    bench.invoked.clear()
    again = bench.call(command_id="c1", retry=True)
    [(number, invocation)] = bench.invoked
    assert (number, invocation.payload, invocation.command_id) == (again, b"x", "c1/f")
    assert bench.history() == [b"e"]


def test_a_forward_whose_append_is_settled_by_its_id_goes_out(bench: Any) -> None:
    call = bench.call(command_id="c1")
    bench.journal.fail(Append, Fenced(9), applied=True)
    bench.journal.holding = True
    bench.say(1, reply(forward="x", events=(b"e",)))
    bench.journal.release()
    bench.batch.flush()
    assert bench.transport.answers[call].refused, "a fence is a definite no: somebody else executes it, and finds the id"
    assert not [operation for operation in bench.journal.operations if isinstance(operation, Lookup)]


def test_chains_are_bounded(bench: Any) -> None:
    chain = tuple(f"/test.S/{n}" for n in range(MAX_CHAIN - 1))
    forward = entity_pb2.Forward(service_name="test.Two", command_name="Call")
    call = bench.callers.attach(told := Told())
    bench.follow_ups.forward(Origin(call, TARGET, chain, ""), forward)
    assert (told.status, bench.invoked) == (Status.UNKNOWN, [])
    assert f"a call may go through {MAX_CHAIN} methods at most" in bench.reported[-1]
    bench.follow_ups.forward(Origin(call, TARGET, chain[1:], ""), forward)
    assert len(bench.invoked) == 1


class Told:
    """A caller of its own kind."""

    status = -1

    def message(self, payload: bytes, headers: Any) -> None:
        raise AssertionError("no message was expected")

    def finish(self, status: int, text: str, trailers: Any) -> None:
        assert self.status == -1, "ended twice"
        self.status = status


def test_many_effects_that_end_at_once(bench: Any) -> None:
    bench.follow_ups.invoke = lambda call, invocation: bench.callers.finish(call, Status.INVALID_ARGUMENT, "no key")
    call = bench.call()
    bench.say(1, reply(effects=(("a", True),) * 1_000))
    assert bench.transport.answers[call].body == b"ok"
    assert bench.follow_ups.effects == 1_000
