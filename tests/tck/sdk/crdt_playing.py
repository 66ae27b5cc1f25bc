"""Plays the proxy towards replicated values: each case is one or more streams, each a script of what the proxy says and the function must answer.

An answer is compared as a whole: a state action, effect or field that no script names fails the case. Only the order of elements and entries in a
delta is free.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
from cloudstate_sdk.pb.cloudstate import crdt_pb2 as pb
from cloudstate_sdk.pb.cloudstate import entity_pb2
from google.protobuf import any_pb2
from google.protobuf.message import Message

from tests.tck.pb.cloudstate.tck.model import crdt_pb2 as model
from tests.tck.sdk.playing import EntityStream

MODEL, TWO = "cloudstate.tck.model.crdt.CrdtTckModel", "cloudstate.tck.model.crdt.CrdtTwo"
TYPE = "cloudstate.crdt.Crdt"
DELETE = model.RequestAction(delete=model.Delete())
Delta = pb.CrdtDelta


def text(value: str) -> any_pb2.Any:
    """A text as an element, key or value; short ones only."""
    raw = value.encode()
    return any_pb2.Any(type_url="p.cloudstate.io/string", value=b"\x0a" + bytes([len(raw)]) + raw if raw else b"")


def texts(values: Iterable[str]) -> list[any_pb2.Any]:
    return [text(value) for value in values]


def change(**update: Any) -> model.RequestAction:
    """One update in a request, by the name of its type."""
    return model.RequestAction(update=model.Update(**update))


def effects(*names: str) -> list[entity_pb2.SideEffect]:
    """Side effects to the second service; synchronous when the name ends with a star."""
    return [
        entity_pb2.SideEffect(
            service_name=TWO, command_name="Call", payload=packed(model.Request(id=name.removesuffix("*"))), synchronous=name.endswith("*")
        )
        for name in names
    ]


def packed(message: Message) -> any_pb2.Any:
    return any_pb2.Any(type_url=f"type.googleapis.com/{message.DESCRIPTOR.full_name}", value=message.SerializeToString(deterministic=True))


def replied(state: model.State) -> entity_pb2.ClientAction:
    """The answer of the model."""
    return entity_pb2.ClientAction(reply=entity_pb2.Reply(payload=packed(model.Response(state=state))))


@dataclass(frozen=True)
class Asks:
    """A command that does something to the value; `tells` is the change that comes with the answer."""

    actions: Sequence[model.RequestAction]
    shows: model.State
    tells: Delta | None = None
    deletes: bool = False
    effects: Sequence[entity_pb2.SideEffect] = ()

    def answer(self, number: int) -> pb.CrdtStreamOut:
        reply = pb.CrdtReply(command_id=number, client_action=replied(self.shows), side_effects=self.effects)
        if self.tells is not None:
            reply.state_action.update.CopyFrom(ordered(self.tells))
        if self.deletes:
            reply.state_action.delete.SetInParent()
        return pb.CrdtStreamOut(reply=reply)


@dataclass(frozen=True)
class Stream:
    """One stream: the value in its init, and what is said on it: commands, changes of others, None: others delete it."""

    said: Sequence[Asks | Delta | None]
    holds: Delta | None = None


@dataclass(frozen=True)
class Case:
    """The value is of type `kind`."""

    name: str
    kind: str
    streams: Sequence[Stream] = field(default_factory=list)


def asks(*actions: model.RequestAction, shows: model.State, tells: Delta | None = None, **more: Any) -> Asks:
    return Asks(actions, shows, tells, **more)


def stream(*said: Asks | Delta | None, holds: Delta | None = None) -> Stream:
    return Stream(said, holds)


def ordered(delta: Delta) -> Delta:
    """The delta with its elements and entries in the order of their bytes."""
    made = Delta()
    made.CopyFrom(delta)
    for group in (made.gset.added, made.orset.removed, made.orset.added, made.ormap.removed) if delta.WhichOneof("delta") else ():
        group.sort(key=lambda element: element.value)
    if delta.HasField("ormap"):
        for entries in (made.ormap.updated, made.ormap.added):
            for entry in entries:
                entry.delta.CopyFrom(ordered(entry.delta))
            entries.sort(key=lambda entry: entry.key.value)
    return made


class CrdtStream(EntityStream):
    """One value's stream."""

    def __init__(self, channel: grpc.aio.Channel, kind: str) -> None:
        super().__init__(channel, f"/{TYPE}/handle", pb.CrdtStreamIn, pb.CrdtStreamOut)
        self.key = f"{kind}-1"

    async def init(self, holds: Delta | None = None) -> CrdtStream:
        await self.write(init=pb.CrdtInit(service_name=MODEL, entity_id=self.key, delta=holds))
        return self

    async def ask(self, request: Message, name: str = "Process") -> int:
        """A command; its number."""
        self._commands += 1
        streamed = name == "ProcessStreamed"
        await self.write(command=entity_pb2.Command(entity_id=self.key, id=self._commands, name=name, payload=packed(request), streamed=streamed))
        return self._commands

    async def process(self, *actions: model.RequestAction) -> int:
        return await self.ask(model.Request(id=self.key, actions=actions))

    async def cancel(self, number: int) -> None:
        """The caller of a streamed command has gone."""
        await self.write(stream_cancelled=entity_pb2.StreamCancelled(entity_id=self.key, id=number))

    async def read(self) -> pb.CrdtStreamOut:
        """What the function says next."""
        message: Any = await self._call.read()
        assert isinstance(message, pb.CrdtStreamOut), "the function has ended the stream"
        if message.reply.state_action.HasField("update"):
            message.reply.state_action.update.CopyFrom(ordered(message.reply.state_action.update))
        return message

    async def told(self, *actions: model.RequestAction) -> pb.CrdtStreamOut:
        """A command, and what the function says next."""
        await self.process(*actions)
        return await self.read()

    async def asked(self, asks: Asks) -> None:
        number = await self.process(*asks.actions)
        assert await self.read() == asks.answer(number)

    async def passivate(self) -> None:
        """The proxy ends the stream; the function ends it too, and says nothing more."""
        await self._call.done_writing()
        assert await self._call.read() is grpc.aio.EOF
        assert await self._call.code() is grpc.StatusCode.OK


async def play(channel: grpc.aio.Channel, case: Case) -> None:
    """Say each line of a case and compare each answer."""
    for script in case.streams:
        live = await CrdtStream(channel, case.kind).init(script.holds)
        for line in script.said:
            if line is None:
                await live.write(delete=pb.CrdtDelete())
            elif isinstance(line, Asks):
                await live.asked(line)
            else:
                await live.write(delta=line)
        await live.passivate()
