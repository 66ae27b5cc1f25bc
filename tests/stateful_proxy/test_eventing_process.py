"""Events of entities reach the methods that subscribe to them, through a real proxy and over its death."""

from __future__ import annotations

import pathlib
import signal
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2

from cloudstate_core.pb.cloudstate import action_pb2, entity_pb2, eventing_pb2
from stateful_proxy.service import ACTION
from tests.stateful_proxy.functions import ANY, Function, spec
from tests.stateful_proxy.processes import BACKENDS, ProxyProcess, until


def subscribing() -> entity_pb2.EntitySpec:
    """The counting entity, and an action that takes any event of it."""
    made = spec()
    files = descriptor_pb2.FileDescriptorSet.FromString(made.proto)
    files.file.add().MergeFromString(ANY)
    own = files.file[0]
    own.dependency.append("google/protobuf/any.proto")
    method = own.service.add(name="Listener").method.add(name="Hear", input_type=".google.protobuf.Any", output_type=".t.M")
    eventing: Any = eventing_pb2.Eventing()
    getattr(eventing, "in").event_log = "p"
    body = eventing.SerializeToString()
    method.options.MergeFromString(b"\xca\x43" + bytes([len(body)]) + body)
    made.proto = files.SerializeToString()
    made.entities.add(entity_type=ACTION, service_name="t.Listener")
    return made


class Listening(Function):
    """Remembers the events that it is given, unless it is deaf: then it fails."""

    def __init__(self) -> None:
        super().__init__(subscribing())
        self.deaf = False
        self.heard: list[tuple[str, str, bytes]] = []
        """Entity, type and bytes of each event."""
        self.failed = 0

    async def start(self) -> None:
        await super().start()
        unary: Any = grpc.unary_unary_rpc_method_handler(self._hear, action_pb2.ActionCommand.FromString)
        self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(ACTION, {"handleUnary": unary}),))

    async def _hear(self, command: action_pb2.ActionCommand, context: Any) -> bytes:
        response = action_pb2.ActionResponse()
        if self.deaf:
            self.failed += 1
            response.failure.description = "I cannot hear"
        else:
            metadata = {entry.key: entry.string_value for entry in command.metadata.entries}
            assert (metadata["ce-source"], metadata["ce-type"]) == ("p", command.payload.type_url)
            self.heard.append((metadata["ce-subject"], command.payload.type_url, command.payload.value))
            response.reply.payload.type_url = "type.googleapis.com/t.M"
        return response.SerializeToString()


@pytest.fixture
async def function() -> AsyncIterator[Listening]:
    made = Listening()
    await made.start()
    yield made
    await made.stop()


async def count(proxy: ProxyProcess, entity: str) -> None:
    """One command, hence one event."""
    key = entity.encode()
    await proxy.channel.unary_unary("/t.S/Count")(b"\n" + bytes([len(key)]) + key, timeout=30)


@pytest.mark.parametrize("backend", BACKENDS)
async def test_events_are_heard_at_least_once_over_the_death_of_a_proxy(function: Listening, backend: str, tmp_path: pathlib.Path) -> None:
    journal = f"sqlite:{tmp_path / 'journal.db'}"
    proxy = await ProxyProcess(function.port, backend, CLOUDSTATE_JOURNAL=journal).start()
    for _ in range(3):
        for entity in ("ann", "bob"):
            await count(proxy, entity)
    await until(lambda: len(function.heard) == 6, "all of them are heard")
    assert sorted(function.heard) == [(entity, "json.cloudstate.io/e", b"{}") for entity in ("ann", "bob") for _ in range(3)]
    function.deaf = True
    await count(proxy, "ann")
    await count(proxy, "eve")
    await until(lambda: function.failed >= 2, "it has failed")
    await proxy.end(signal.SIGKILL)
    function.deaf = False
    before = len(function.heard)
    proxy = await ProxyProcess(function.port, backend, CLOUDSTATE_JOURNAL=journal).start()
    await until(lambda: {"ann", "eve"} <= {entity for entity, _, _ in function.heard[before:]}, "what was not heard is given again")
    assert "cloudstate_events_handled_total" in proxy.page("/metrics")[1]
    await proxy.end()
