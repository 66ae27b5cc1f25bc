"""The value entity protocol as seen from the function, the caller and the journal."""

from __future__ import annotations

from typing import Any

import pytest

from cloudstate_core.journal.api import Activate, Active, Put, Unknown, Value
from cloudstate_core.pb.cloudstate import value_entity_pb2
from cloudstate_core.transport.api import Status
from stateful_proxy.service import VALUE_ENTITY, MethodInfo

METHOD = MethodInfo("/test.Box/Set", "test.Box", "Set", "box", VALUE_ENTITY, "test.In", "test.Out", (((1,), 9),), "key", None)


@pytest.fixture(autouse=True)
def boxes(bench: Any) -> None:
    bench.method = METHOD


def sent(bench: Any, stream: int) -> list[value_entity_pb2.ValueEntityStreamIn]:
    return [value_entity_pb2.ValueEntityStreamIn.FromString(message) for message in bench.transport.streams[stream].sent]


def reply(command_id: int, update: bytes | None = None, delete: bool = False, failure: str = "") -> Any:
    out = value_entity_pb2.ValueEntityStreamOut()
    out.reply.command_id = command_id
    if failure:
        out.reply.client_action.failure.description = failure
    else:
        out.reply.client_action.reply.payload.value = b"ok"
    if update is not None:
        out.reply.state_action.update.value.type_url, out.reply.state_action.update.value.value = "json.cloudstate.io/s", update
    if delete:
        out.reply.state_action.delete.SetInParent()
    return out


def stored(bench: Any) -> Value | None:
    """The box's value as the next activation would find it."""
    [put] = [o for o in bench.journal.operations if isinstance(o, Put)][-1:]
    found: list[Any] = []
    bench.journal.inner.submit([Activate(put.shard, put.token, put.entity, b"probe")], found.extend)
    assert isinstance(found[0], Active)
    assert (found[0].tail, found[0].seq) == ((), put.expected_seq + 1)
    return found[0].snapshot


def test_a_new_entity_gets_an_empty_state_then_the_command(bench: Any) -> None:
    bench.call(b"payload", entity="k")
    init, command = sent(bench, 1)
    assert bench.transport.streams[1].path == "/cloudstate.valueentity.ValueEntity/handle"
    expected = value_entity_pb2.ValueEntityStreamIn()
    expected.init.service_name, expected.init.entity_id = "test.Box", "k"
    expected.init.state.SetInParent()
    assert init == expected
    expected = value_entity_pb2.ValueEntityStreamIn()
    expected.command.entity_id, expected.command.id, expected.command.name = "k", 1, "Set"
    expected.command.payload.type_url, expected.command.payload.value = "type.googleapis.com/test.In", b"payload"
    assert command == expected


def test_the_answer_waits_for_the_value(bench: Any) -> None:
    call = bench.call()
    bench.journal.holding = True
    bench.say(1, reply(1, b"v1"))
    assert call not in bench.transport.answers
    bench.journal.release()
    assert bench.transport.answers[call].body == b"ok"
    assert stored(bench) == Value("json.cloudstate.io/s", b"v1")


def test_updated_deleted_and_updated_again_on_one_stream(bench: Any) -> None:
    for number, (update, delete) in enumerate([(b"v1", False), (None, True), (b"v2", False)], 1):
        call = bench.call()
        bench.say(1, reply(number, update, delete))
        assert bench.transport.answers[call].status == Status.OK
    puts = [o.value and o.value.data for o in bench.journal.operations if isinstance(o, Put)]
    assert puts == [b"v1", None, b"v2"]
    assert stored(bench) == Value("json.cloudstate.io/s", b"v2")
    assert [m.command.id for m in sent(bench, 1)[1:]] == [1, 2, 3]


@pytest.mark.parametrize(("delete", "expected"), [(False, b"v1"), (True, None)])
def test_passivated_and_back_as_it_was(bench: Any, delete: bool, expected: bytes | None) -> None:
    bench.call()
    bench.say(1, reply(1, b"v1"))
    if delete:
        bench.call()
        bench.say(1, reply(2, delete=True))
    for stream in (2, 3):
        bench.entities.passivate(float("inf"))
        bench.call()
        init = sent(bench, stream)[0].init
        assert (init.state.value.value or None, init.state.HasField("value")) == (expected, expected is not None)
        bench.say(stream, reply(1))


def test_no_state_action_no_write(bench: Any) -> None:
    bench.call()
    bench.say(1, reply(1))
    assert not [o for o in bench.journal.operations if isinstance(o, Put)]


def test_a_failure_keeps_state_and_stream(bench: Any) -> None:
    bench.call()
    bench.say(1, reply(1, b"v1"))
    call = bench.call()
    bench.say(1, reply(2, failure="no"))
    assert (bench.transport.answers[call].status, bench.transport.answers[call].text) == (Status.UNKNOWN, "no")
    assert not bench.transport.streams[1].ended
    assert stored(bench) == Value("json.cloudstate.io/s", b"v1")


def test_a_failure_with_an_update_stores_nothing_and_starts_afresh(bench: Any) -> None:
    bench.call()
    bench.say(1, reply(1, b"v1"))
    bench.call()
    bench.say(1, reply(2, b"never", failure="no"))
    assert stored(bench) == Value("json.cloudstate.io/s", b"v1")
    assert bench.transport.streams[1].ended
    bench.call()
    assert sent(bench, 2)[0].init.state.value.value == b"v1"


@pytest.mark.parametrize("applied", [True, False])
def test_an_unknown_put_is_settled_by_reading(bench: Any, applied: bool) -> None:
    call = bench.call()
    bench.journal.fail(Put, Unknown("timeout"), applied=applied)
    bench.say(1, reply(1, b"v1"))
    bench.batch.flush()
    if applied:
        assert bench.transport.answers[call].body == b"ok"
    else:
        assert call not in bench.transport.answers
        bench.say(2, reply(1, b"v1"))
        assert bench.transport.answers[call].body == b"ok"
    assert stored(bench) == Value("json.cloudstate.io/s", b"v1")


def test_a_repeated_command_is_answered_not_executed(bench: Any) -> None:
    bench.call(command_id="c")
    bench.say(1, reply(1, b"v1"))
    again = bench.call(command_id="c", retry=True)
    assert bench.transport.answers[again].body == b"ok"
    assert len(sent(bench, 1)) == 2


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda bench: bench.say(1, reply(7)), "Unexpected Value entity reply"),
        (lambda bench: bench.say(1, value_entity_pb2.ValueEntityStreamOut(failure={"description": "x"})), "Unexpected Value entity failure"),
        (lambda bench: bench.closed(1), "Unexpected Value entity termination"),
    ],
)
def test_a_crash_is_told_and_those_that_wait_are_told_too(bench: Any, make: Any, told: str) -> None:
    call, waiting = bench.call(), bench.call()
    make(bench)
    assert (bench.transport.answers[call].status, bench.transport.answers[call].text) == (Status.UNKNOWN, told)
    assert bench.transport.answers[waiting].text == "Value entity terminated"
