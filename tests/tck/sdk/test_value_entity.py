"""The conformance suite's model cases of value entities, under its names."""

from __future__ import annotations

from typing import Any

import grpc.aio
import pytest
from cloudstate_sdk.pb.cloudstate import value_entity_pb2 as pb

from tests.tck.pb.cloudstate.tck.model import valueentity_pb2 as model
from tests.tck.sdk.playing import EntityStream, discovered, told

MODEL = "cloudstate.tck.model.valueentity.ValueEntityTckModel"
TYPE = "cloudstate.valueentity.ValueEntity"
FORWARD, FAIL, DELETE = {"forward": {"id": "f"}}, {"fail": {"message": "no"}}, {"delete": {}}
A, B = ({"effect": {"id": name}} for name in "ab")
SYNC = {"effect": {"id": "s", "synchronous": True}}
GONE = "deleted"
Steps = list[dict[str, Any]]
Case = tuple[str, list[tuple[Steps, str, str | None]]]


def update(value: str) -> dict[str, Any]:
    return {"update": {"value": value}}


async def opened(channel: grpc.aio.Channel, value: str | None = None) -> EntityStream:
    """A stream after its init."""
    stream = EntityStream(channel, f"/{TYPE}/handle", pb.ValueEntityStreamIn, pb.ValueEntityStreamOut)
    init = pb.ValueEntityInit(service_name=MODEL, entity_id="entity", state=pb.ValueEntityInitState())
    if value is not None:
        init.state.value.Pack(model.Persisted(value=value))
    await stream.write(init=init)
    return stream


async def process(stream: EntityStream, steps: Steps) -> tuple[str, str | None]:
    """What the caller gets, and what becomes of the value: None, nothing."""
    request = model.Request(id="entity", actions=[model.RequestAction(**step) for step in steps])
    reply = (await stream.command("Process", request)).reply
    action, changed = reply.state_action, None
    if action.WhichOneof("action") == "update":
        changed = model.Persisted.FromString(action.update.value.value).value
        assert action.update.value.type_url == "type.googleapis.com/cloudstate.tck.model.valueentity.Persisted"
    elif action.WhichOneof("action") == "delete":
        changed = GONE
    return told(reply.client_action, reply.side_effects, model.Response, model.Request), changed


async def test_verify_entity_discovery(channel: grpc.aio.Channel) -> None:
    found = await discovered(channel, MODEL)
    assert (found.entity_type, found.persistence_id, found.HasField("passivation_strategy")) == (TYPE, "value-entity-tck-model", False)


async def test_verify_configured_entity(channel: grpc.aio.Channel) -> None:
    found = await discovered(channel, MODEL.replace("TckModel", "Configured"))
    assert (found.persistence_id, found.passivation_strategy.timeout.timeout) == ("value-entity-configured", 100)


CASES: list[Case] = [
    ("verify initial empty state", [([], "=", None)]),
    ("verify update state", [([update("one")], "=one", "one"), ([], "=one", None)]),
    ("verify delete state", [([update("one")], "=one", "one"), ([DELETE], "=", GONE), ([], "=", None)]),
    ("verify sub invocations with multiple update states", [([update("one"), update("two"), update("three")], "=three", "three")]),
    ("verify sub invocations with multiple update states and delete states", [([update("one"), DELETE, update("two"), DELETE], "=", GONE)]),
    ("verify sub invocations with update, delete and update states", [([update("one"), DELETE, update("two")], "=two", "two")]),
    ("verify reply with multiple side effects", [([A, B, SYNC], "= a b s*", None)]),
    ("verify reply with side effect to second service", [([A], "= a", None)]),
    ("verify reply with multiple side effects and state", [([A, update("one"), B], "=one a b", "one"), ([], "=one", None)]),
    ("verify synchronous side effect to second service", [([SYNC], "= s*", None)]),
    ("verify forward to second service", [([FORWARD], "-> f", None)]),
    ("verify forward with updated state to second service", [([update("one"), FORWARD], "-> f", "one"), ([], "=one", None)]),
    ("verify forward and side effect to second service", [([A, FORWARD], "-> f a", None)]),
    ("verify failure action", [([FAIL], "! no", None)]),
    ("verify connection after failure action", [([update("one")], "=one", "one"), ([FAIL], "! no", None), ([], "=one", None)]),
    ("verify failure action do not allow side effects", [([A, B, FAIL], "! no", None)]),
]


@pytest.mark.parametrize("exchanges", [case[1] for case in CASES], ids=[case[0] for case in CASES])
async def test_entity(channel: grpc.aio.Channel, exchanges: list[tuple[Steps, str, str | None]]) -> None:
    stream = await opened(channel)
    for steps, answer, changed in exchanges:
        assert await process(stream, steps) == (answer, changed)


async def test_verify_rehydration_after_passivation(channel: grpc.aio.Channel) -> None:
    first = await opened(channel)
    assert await process(first, [update("one")]) == ("=one", "one")
    second = await opened(channel, "one")
    assert await process(second, []) == ("=one", None)
    assert await process(second, [DELETE]) == ("=", GONE)
    assert await process(await opened(channel), []) == ("=", None)
