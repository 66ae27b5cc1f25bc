"""Commands that come from within another one's end: an effect on the entity that asks for it, and what follows a failure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cloudstate_core.pb.cloudstate import event_sourced_pb2
from cloudstate_core.transport.api import Header, Status
from stateful_proxy.entity import Command


class Told:
    """Hears how a call ends, and goes on with something then."""

    def __init__(self, then: Callable[[], None]) -> None:
        self.statuses: list[int] = []
        self.then = then

    def message(self, payload: bytes, headers: Sequence[Header]) -> None:
        """An answer."""

    def finish(self, status: int, text: str, trailers: Sequence[Header]) -> None:
        """The end."""
        self.statuses.append(int(status))
        self.then()


def command(bench: Any, call: int, payload: bytes) -> None:
    """A command on the entity, in the midst of whatever is going on."""
    bench.entities.command(Command(call, bench.method, "a", payload), 0, bench.tokens[0])


def test_an_effect_on_an_entity_whose_function_has_gone_waits_for_the_next_stream(bench: Any) -> None:
    bench.methods["/test.Counter/Add"] = bench.method
    bench.follow_ups.invoke = lambda call, invocation: command(bench, call, invocation.payload.upper())
    call = bench.call()
    out = event_sourced_pb2.EventSourcedStreamOut()
    out.reply.command_id = 1
    out.reply.client_action.reply.payload.value = b"ok"
    out.reply.events.add(type_url="json.cloudstate.io/event", value=b"e")
    out.reply.side_effects.add(service_name="test.Counter", command_name="Add").payload.value = b"effect"
    bench.journal.holding = True
    bench.say(1, out)
    bench.closed(1, Status.UNAVAILABLE, "gone")
    bench.journal.release()
    bench.batch.flush()
    assert bench.transport.answers[call].body == b"ok"
    assert bench.kinds(2) == ["init", "event", "command"]
    assert bench.sent(2)[-1].command.payload.value == b"EFFECT"


def test_a_command_that_follows_a_failure_is_answered_though_the_shard_is_lost_then(bench: Any) -> None:
    second = Told(lambda: None)
    first = Told(lambda: command(bench, bench.callers.attach(second), b"second"))
    command(bench, bench.callers.attach(first), b"first")
    bench.batch.flush()
    bench.journal.claim(0, "other")
    bench.reply(1, 1, failure="again", restart=True)
    assert bench.losses
    assert (first.statuses, second.statuses) == ([Status.UNKNOWN], [Status.UNAVAILABLE])


def test_a_command_that_follows_a_crash_is_executed_after_it(bench: Any) -> None:
    second = Told(lambda: None)
    first = Told(lambda: command(bench, bench.callers.attach(second), b"second"))
    command(bench, bench.callers.attach(first), b"first")
    bench.batch.flush()
    waiting = bench.call(b"waiting")
    out = event_sourced_pb2.EventSourcedStreamOut()
    out.failure.description = "it crashed"
    bench.say(1, out)
    assert bench.transport.answers[waiting].text == "Entity terminated"
    assert bench.sent(2)[-1].command.payload.value == b"second"
    bench.reply(2, 1)
    assert (first.statuses, second.statuses) == ([Status.UNKNOWN], [Status.OK])
