"""The conformance suite's model cases of event sourced entities, under its names."""

from __future__ import annotations

from typing import Any

import grpc.aio
import pytest
from cloudstate_sdk.pb.cloudstate import event_sourced_pb2 as pb

from tests.tck.pb.cloudstate.tck.model import eventsourced_pb2 as model
from tests.tck.sdk.playing import EntityStream, discovered, told

MODEL = "cloudstate.tck.model.EventSourcedTckModel"
TYPE = "cloudstate.eventsourced.EventSourced"
FORWARD, FAIL = {"forward": {"id": "f"}}, {"fail": {"message": "no"}}
A, B = ({"effect": {"id": name}} for name in "ab")
SYNC = {"effect": {"id": "s", "synchronous": True}}
Steps = list[dict[str, Any]]
Exchange = tuple[Steps, str, list[str], str | None]
"""Steps; what the caller gets; events; the snapshot, None: there is none."""


def emit(*values: str) -> Steps:
    return [{"emit": {"value": value}} for value in values]


async def opened(channel: grpc.aio.Channel, snapshot: tuple[int, str] | None = None, events: tuple[str, ...] = ()) -> EntityStream:
    """A stream after init and replay."""
    stream = EntityStream(channel, f"/{TYPE}/handle", pb.EventSourcedStreamIn, pb.EventSourcedStreamOut)
    init, sequence = pb.EventSourcedInit(service_name=MODEL, entity_id="entity"), 0
    if snapshot is not None:
        sequence, value = snapshot
        init.snapshot.snapshot_sequence = sequence
        init.snapshot.snapshot.Pack(model.Persisted(value=value))
    await stream.write(init=init)
    for value in events:
        sequence += 1
        event = pb.EventSourcedEvent(sequence=sequence)
        event.payload.Pack(model.Persisted(value=value))
        await stream.write(event=event)
    return stream


async def process(stream: EntityStream, steps: Steps) -> tuple[str, list[str], str | None]:
    """What the caller gets, the events, and the snapshot."""
    reply = (await stream.command("Process", model.Request(id="entity", actions=[model.RequestAction(**step) for step in steps]))).reply
    events = [model.Persisted.FromString(event.value).value for event in reply.events]
    snapshot = model.Persisted.FromString(reply.snapshot.value).value if reply.HasField("snapshot") else None
    return told(reply.client_action, reply.side_effects, model.Response, model.Request), events, snapshot


async def test_verify_event_sourced_entity_discovery(channel: grpc.aio.Channel) -> None:
    found = await discovered(channel, MODEL)
    assert (found.entity_type, found.persistence_id, found.HasField("passivation_strategy")) == (TYPE, "event-sourced-tck-model", False)


async def test_verify_event_sourced_configured_entity(channel: grpc.aio.Channel) -> None:
    found = await discovered(channel, MODEL.replace("TckModel", "Configured"))
    assert (found.persistence_id, found.passivation_strategy.timeout.timeout) == ("event-sourced-configured", 100)


CASES: list[tuple[str, list[Exchange]]] = [
    ("verify initial empty state", [([], "=", [], None)]),
    ("verify single emitted event", [(emit("A"), "=A", ["A"], None), ([], "=A", [], None)]),
    ("verify multiple emitted events", [(emit("A", "B", "C"), "=ABC", ["A", "B", "C"], None)]),
    (
        "verify multiple emitted events and snapshots",
        [
            (emit("A"), "=A", ["A"], None),
            (emit("B", "C", "D"), "=ABCD", ["B", "C", "D"], None),
            (emit("E"), "=ABCDE", ["E"], "ABCDE"),
            (emit("F", "G", "H"), "=ABCDEFGH", ["F", "G", "H"], None),
            (emit("I", "J"), "=ABCDEFGHIJ", ["I", "J"], "ABCDEFGHIJ"),
        ],
    ),
    ("verify forward to second service", [([FORWARD], "-> f", [], None)]),
    ("verify forward with emitted events", [([*emit("A"), FORWARD], "-> f", ["A"], None)]),
    (
        "verify forward with emitted events and snapshot",
        [(emit("A", "B", "C", "D"), "=ABCD", ["A", "B", "C", "D"], None), ([*emit("E"), FORWARD], "-> f", ["E"], "ABCDE")],
    ),
    ("verify reply with side effect to second service", [([A], "= a", [], None)]),
    ("verify synchronous side effect to second service", [([SYNC], "= s*", [], None)]),
    ("verify forward and side effect to second service", [([A, FORWARD], "-> f a", [], None)]),
    ("verify reply with multiple side effects", [([A, B, SYNC], "= a b s*", [], None)]),
    (
        "verify reply with multiple side effects, events, and snapshot",
        [([*emit("A", "B", "C", "D", "E"), A, SYNC], "=ABCDE a s*", ["A", "B", "C", "D", "E"], "ABCDE")],
    ),
    ("verify failure action", [([FAIL], "! no", [], None)]),
    ("verify connection after failure action", [(emit("A"), "=A", ["A"], None), ([FAIL], "! no", [], None), ([], "=A", [], None)]),
    ("verify failure actions do not allow side effects", [([A, B, FAIL], "! no", [], None)]),
]


@pytest.mark.parametrize("exchanges", [case[1] for case in CASES], ids=[case[0] for case in CASES])
async def test_entity(channel: grpc.aio.Channel, exchanges: list[Exchange]) -> None:
    stream = await opened(channel)
    for steps, *expected in exchanges:
        assert list(await process(stream, steps)) == expected


async def test_verify_initial_snapshot(channel: grpc.aio.Channel) -> None:
    assert await process(await opened(channel, (10, "ABCDEFGHIJ")), []) == ("=ABCDEFGHIJ", [], None)


async def test_verify_initial_snapshot_and_events(channel: grpc.aio.Channel) -> None:
    assert await process(await opened(channel, (5, "ABCDE"), ("F", "G", "H")), []) == ("=ABCDEFGH", [], None)


async def test_verify_rehydration_after_passivation(channel: grpc.aio.Channel) -> None:
    first = await opened(channel)
    assert await process(first, emit("A", "B", "C")) == ("=ABC", ["A", "B", "C"], None)
    second = await opened(channel, None, ("A", "B", "C"))
    assert await process(second, emit("D", "E")) == ("=ABCDE", ["D", "E"], "ABCDE")
    third = await opened(channel, (5, "ABCDE"))
    assert await process(third, emit("F")) == ("=ABCDEF", ["F"], None)


async def test_verify_failure_actions_do_not_retain_emitted_events_may_request_entity_restart(channel: grpc.aio.Channel) -> None:
    stream = await opened(channel, None, ("A",))
    request = model.Request(id="entity", actions=[model.RequestAction(**step) for step in [*emit("B", "C"), FAIL]])
    reply = (await stream.command("Process", request)).reply
    failure = reply.client_action.failure
    assert (failure.description, failure.restart, list(reply.events)) == ("no", True, [])
    again = await opened(channel, None, ("A",))
    assert await process(again, []) == ("=A", [], None)
