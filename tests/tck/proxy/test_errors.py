"""What callers are told when an entity breaks, for each kind that has one command in flight, by gRPC and by HTTP; and that the next one is served."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
import pytest_asyncio

from cloudstate_core.pb.cloudstate import entity_pb2
from tests.stateful_proxy.processes import until
from tests.tck import scripted
from tests.tck.client import Client, Page, outcome
from tests.tck.messages import EventSourced, ValueEntity, reply
from tests.tck.pb.cloudstate.tck.model import eventsourced_pb2, valueentity_pb2
from tests.tck.scripted import Call, ScriptedFunction
from tests.tck.worlds import World, started

pytestmark = pytest.mark.asyncio(loop_scope="session")
UNKNOWN = grpc.StatusCode.UNKNOWN


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def shared_world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """One for these cases alone: a function that ends streams is asked again what it serves."""
    async with started(tmp_path_factory.mktemp("errors"), steady=False) as world:
        yield world


@dataclass(frozen=True)
class Kind:
    """A kind of entity, its model, and how the errors call it."""

    path: str
    service: str
    route: str
    says: Any
    pb: Any
    noun: str
    """As in 'Unexpected … failure'."""
    terminated: str

    def process(self, client: Client, key: str) -> asyncio.Task[Any]:
        """Begin a command."""
        return client.unary(f"/{self.service}/Process", self.pb.Request(id=key), self.pb.Response)

    async def opened(self, function: ScriptedFunction, key: str) -> Call:
        """A new entity has got its first command."""
        stream = await function.call(self.path)
        await stream.expect(self.says.init(self.service, key))
        await stream.expect(self.says.command(key, 1, "Process", self.pb.Request(id=key)))
        return stream

    def answer(self, number: int, text: str) -> Any:
        """A reply."""
        return self.says.reply(number, reply(self.pb.Response(message=text)))


KINDS = [
    Kind(
        scripted.EVENT_SOURCED, "cloudstate.tck.model.EventSourcedTckModel", "/tck/model/eventsourced",
        EventSourced, eventsourced_pb2, "entity", "Entity terminated",
    ),
    Kind(
        scripted.VALUE_ENTITY, "cloudstate.tck.model.valueentity.ValueEntityTckModel", "/tck/model/entity",
        ValueEntity, valueentity_pb2, "Value entity", "Value entity terminated",
    ),
]  # fmt: skip
Fault = Callable[[Kind, Call], Awaitable[None]]


async def fails_the_command(kind: Kind, stream: Call) -> None:
    await stream.send(kind.says.failure(1, "a secret of the handler"))
    await stream.expect_over()


async def fails_at_no_command(kind: Kind, stream: Call) -> None:
    await stream.send(kind.says.failure(0, "a secret of the handler"))
    await stream.expect_over()


async def fails_at_another_command(kind: Kind, stream: Call) -> None:
    await stream.send(kind.says.failure(7, "a secret of the handler"))
    await stream.expect_over()


async def fails_and_ends(kind: Kind, stream: Call) -> None:
    """As SDKs do when a handler throws."""
    await stream.send(kind.says.failure(1, "a secret of the handler"))
    await stream.release()


async def ends(kind: Kind, stream: Call) -> None:
    await stream.close()


async def ends_with_a_status(kind: Kind, stream: Call) -> None:
    await stream.fail(grpc.StatusCode.INTERNAL, "a secret of the runtime")


async def answers_another_command(kind: Kind, stream: Call) -> None:
    await stream.send(kind.answer(2, "x"))
    await stream.expect_over()


async def answers_no_command(kind: Kind, stream: Call) -> None:
    await stream.send(kind.answer(0, "x"))
    await stream.expect_over()


async def says_nothing(kind: Kind, stream: Call) -> None:
    await stream.send(entity_pb2.StreamCancelled())
    await stream.expect_over()


FAULTS = [
    (fails_the_command, "failure"),
    (fails_at_no_command, "failure"),
    (fails_at_another_command, "failure"),
    (fails_and_ends, "failure"),
    (ends, "termination"),
    (ends_with_a_status, "termination"),
    (answers_another_command, "reply"),
    (answers_no_command, "reply"),
    (says_nothing, "reply"),
]
each_kind = pytest.mark.parametrize("kind", KINDS, ids=["event sourced", "value"])
each_fault = pytest.mark.parametrize(("fault", "text"), FAULTS, ids=[fault.__name__ for fault, _ in FAULTS])


@each_kind
@each_fault
async def test_a_broken_entity(
    world: World, function: ScriptedFunction, client: Client, key: str, kind: Kind, fault: Fault, text: str
) -> None:
    first = kind.process(client, key)
    stream = await kind.opened(function, key)
    taken = world.proxy.figure("cloudstate_commands_total")
    second = kind.process(client, key)
    await until(lambda: world.proxy.figure("cloudstate_commands_total") == taken + 1, "the second one waits behind the first")
    await fault(kind, stream)
    assert await outcome(first) == (UNKNOWN, f"Unexpected {kind.noun} {text}")
    assert await outcome(second) == (UNKNOWN, kind.terminated)
    answer = kind.process(client, key)
    stream = await kind.opened(function, key)
    await stream.send(kind.answer(1, "well again"))
    assert (await answer).message == "well again"


@each_kind
@pytest.mark.parametrize(("fault", "text"), [FAULTS[0], FAULTS[4], FAULTS[6]], ids=["failure", "termination", "reply"])
async def test_a_broken_entity_by_http(function: ScriptedFunction, client: Client, key: str, kind: Kind, fault: Fault, text: str) -> None:
    answer = client.posting(f"{kind.route}/{key}", "{}")
    stream = await kind.opened(function, key)
    await fault(kind, stream)
    assert await answer == Page(500, "text/plain; charset=UTF-8", f"Unexpected {kind.noun} {text}")
    answer = client.posting(f"{kind.route}/{key}", "{}")
    stream = await kind.opened(function, key)
    await stream.send(kind.answer(1, "well again"))
    assert json.loads((await answer).text) == {"message": "well again"}


@each_kind
async def test_what_a_broken_entity_asked_for_is_not_stored(function: ScriptedFunction, client: Client, key: str, kind: Kind) -> None:
    """A reply that breaks the protocol changes nothing, whatever it carries."""
    first = kind.process(client, key)
    stream = await kind.opened(function, key)
    changed = [kind.pb.Persisted(value="x")] if kind.says is EventSourced else kind.pb.Persisted(value="x")
    await stream.send(kind.says.reply(2, reply(kind.pb.Response(message="x")), changed))
    assert await outcome(first) == (UNKNOWN, f"Unexpected {kind.noun} reply")
    await stream.expect_over()
    answer = kind.process(client, key)
    stream = await kind.opened(function, key)
    await stream.send(kind.answer(1, ""))
    await answer
