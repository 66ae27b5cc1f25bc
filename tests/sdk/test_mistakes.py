"""Mistakes that are easily made in entities: each ends what it must and no more, and is told in words that help."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from cloudstate_sdk import Context, ValueContext, command, event_sourced, value_entity
from cloudstate_sdk.testkit import Crashed, EventSourcedKit, ValueKit

from tests.tck.pb.cloudstate.tck.model import eventsourced_pb2 as sourced
from tests.tck.pb.cloudstate.tck.model import valueentity_pb2 as values

BOX, LOG = "cloudstate.tck.model.valueentity.ValueEntityTwo", "cloudstate.tck.model.EventSourcedTwo"


async def shared() -> None:
    """Something that somebody else cancels."""
    future = asyncio.get_running_loop().create_future()
    future.cancel()
    await future


def test_a_cancellation_of_what_a_command_waits_for_crashes_the_entity() -> None:
    """It said nothing to the proxy, and the caller waited until its time was over."""

    @event_sourced(LOG, persistence_id="waiting", descriptor=sourced.DESCRIPTOR)
    class Waiting:
        def __init__(self, entity_id: str) -> None: ...

        @command
        async def call(self, request: sourced.Request, context: Context) -> Any:
            await shared()

    @value_entity(BOX, persistence_id="waiting", descriptor=values.DESCRIPTOR, state=values.Persisted)
    class WaitingBox:
        @command
        async def call(self, request: values.Request, context: ValueContext[values.Persisted]) -> Any:
            await shared()

    with pytest.raises(Crashed, match=r"^Waiting\.call: something that the command waited for was cancelled$"):
        EventSourcedKit(Waiting).call("Call", sourced.Request(id="a"))
    with pytest.raises(Crashed, match=r"^WaitingBox\.call: something that the command waited for was cancelled$"):
        ValueKit(WaitingBox).call("Call", values.Request(id="a"))
