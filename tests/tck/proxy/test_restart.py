"""What every kind of entity has stored is there for a proxy that starts after the first one was killed or told to stop."""

from __future__ import annotations

import pathlib
import signal
from collections.abc import Awaitable, Callable

import pytest

from cloudstate_core.pb.cloudstate import crdt_pb2 as crdt
from tests.tck import scripted
from tests.tck.messages import Crdt, EventSourced, ValueEntity, reply
from tests.tck.pb.cloudstate.tck.model import crdt_pb2, eventsourced_pb2, valueentity_pb2
from tests.tck.worlds import World, started

KEY = "GCounter-a:b"
Use = Callable[[World, bool], Awaitable[None]]


async def events(world: World, again: bool) -> None:
    """Two events with a snapshot, and one more."""
    pb, service = eventsourced_pb2, "cloudstate.tck.model.EventSourcedTckModel"
    a, b, c, ab = (pb.Persisted(value=value) for value in ("a", "b", "c", "ab"))
    answer = world.client.unary(f"/{service}/Process", pb.Request(id=KEY), pb.Response)
    stream = await world.function.call(scripted.EVENT_SOURCED)
    if again:
        await stream.expect(EventSourced.init(service, KEY, ab, 2))
        await stream.expect(EventSourced.event(3, c))
    else:
        await stream.expect(EventSourced.init(service, KEY))
    for number, (stored, snapshot) in enumerate([([a, b], ab), ([c], None)], 1):
        await stream.expect(EventSourced.command(KEY, number, "Process", pb.Request(id=KEY)))
        await stream.send(EventSourced.reply(number, reply(pb.Response()), stored, snapshot))
        await answer
        if number == 1:
            answer = world.client.unary(f"/{service}/Process", pb.Request(id=KEY), pb.Response)


async def value(world: World, again: bool) -> None:
    """A value."""
    pb, service = valueentity_pb2, "cloudstate.tck.model.valueentity.ValueEntityTckModel"
    answer = world.client.unary(f"/{service}/Process", pb.Request(id=KEY), pb.Response)
    stream = await world.function.call(scripted.VALUE_ENTITY)
    await stream.expect(ValueEntity.init(service, KEY, pb.Persisted(value="x") if again else None))
    await stream.expect(ValueEntity.command(KEY, 1, "Process", pb.Request(id=KEY)))
    await stream.send(ValueEntity.reply(1, reply(pb.Response()), pb.Persisted(value="x")))
    await answer


async def replicated(world: World, again: bool) -> None:
    """A counter."""
    pb, service = crdt_pb2, "cloudstate.tck.model.crdt.CrdtTckModel"
    added = crdt.CrdtDelta(gcounter=crdt.GCounterDelta(increment=7))
    answer = world.client.unary(f"/{service}/Process", pb.Request(id=KEY), pb.Response)
    stream = await world.function.call(scripted.CRDT)
    await stream.expect(Crdt.init(service, KEY, added if again else None))
    await stream.expect(Crdt.command(KEY, 1, "Process", pb.Request(id=KEY)))
    await stream.send(Crdt.reply(1, reply(pb.Response()), added))
    await answer


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "told to stop"])
@pytest.mark.parametrize("use", [events, value, replicated])
async def test_entities_outlive_their_proxy(tmp_path: pathlib.Path, use: Use, number: int) -> None:
    for again in (False, True):
        async with started(tmp_path, f"sqlite:{tmp_path / 'journal.db'}", steady=False) as world:
            await use(world, again)
            await world.proxy.end(number)
