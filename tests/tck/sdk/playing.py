"""Plays the proxy towards a function: discovery, entity streams message by message, and actions in their four shapes."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import grpc.aio
from cloudstate_sdk.pb.cloudstate import action_pb2, entity_pb2
from google.protobuf.message import Message

from cloudstate_core.transport import grpcio_wire
from tests.tck.pb.cloudstate.tck.model import action_pb2 as actions

LIMIT = 30.0
DOER = "cloudstate.tck.model.action.ActionTckModel"


async def discovered(channel: grpc.aio.Channel, service: str) -> entity_pb2.Entity:
    """What the function says of one of its services."""
    method: Any = channel.unary_unary("/cloudstate.EntityDiscovery/discover", response_deserializer=entity_pb2.EntitySpec.FromString)
    spec = await method(entity_pb2.ProxyInfo(protocol_minor_version=2).SerializeToString(), timeout=LIMIT)
    [found] = [entity for entity in spec.entities if entity.service_name == service]
    assert isinstance(found, entity_pb2.Entity)
    return found


class EntityStream:
    """One entity's stream. `takes` and `gives` are the protocol's stream messages."""

    def __init__(self, channel: grpc.aio.Channel, path: str, takes: type[Message], gives: type[Message]) -> None:
        method: Any = channel.stream_stream(path, response_deserializer=gives.FromString)
        self._call, self._takes, self._commands = method(timeout=LIMIT), takes, 0

    async def write(self, **message: Any) -> None:
        """One message, by the name of its field."""
        await self._call.write(self._takes(**message).SerializeToString())

    async def command(self, name: str, request: Message) -> Any:
        """A command and the function's answer to it."""
        self._commands += 1
        command = entity_pb2.Command(entity_id="entity", id=self._commands, name=name)
        command.payload.Pack(request)
        await self.write(command=command)
        return await self._call.read()


def told(action: entity_pb2.ClientAction, effects: Any, answers: type[Message], requests: type[Message]) -> str:
    """A client action and its effects in a word: the text, who it is forwarded to, or the failure; then who is called besides."""
    kind = action.WhichOneof("action")
    reply: Any = answers.FromString(action.reply.payload.value)
    forward: Any = requests.FromString(action.forward.payload.value)
    text = {"reply": f"={reply.message}" if kind == "reply" else "", "forward": f"-> {forward.id}" if kind == "forward" else ""}
    said = f"! {action.failure.description}" if kind == "failure" else text.get(kind or "", "")
    return " ".join([said, *(_effect(effect, requests) for effect in effects)])


def _effect(effect: entity_pb2.SideEffect, requests: type[Message]) -> str:
    request: Any = requests.FromString(effect.payload.value)
    return f"{request.id}{'*' if effect.synchronous else ''}"


async def acted(channel: grpc.aio.Channel, shape: str, *requests: actions.Request) -> list[str]:
    """What an action answers to some requests, each answer in a word."""
    kinds = {
        "Unary": channel.unary_unary,
        "StreamedIn": channel.stream_unary,
        "StreamedOut": channel.unary_stream,
        "Streamed": channel.stream_stream,
    }
    method: Any = kinds[shape](f"/cloudstate.action.ActionProtocol/handle{shape}", response_deserializer=action_pb2.ActionResponse.FromString)
    named = action_pb2.ActionCommand(service_name=DOER, name=f"Process{shape}")
    async with asyncio.TaskGroup() as sending:
        if shape in ("StreamedIn", "Streamed"):
            call = method(timeout=LIMIT)
            sending.create_task(_send(call, [named, *map(_payload, requests)]))
        else:
            named.MergeFrom(_payload(*requests))
            call = method(named.SerializeToString(), timeout=LIMIT)
        answers = [await call] if shape in ("Unary", "StreamedIn") else [answer async for answer in call]
    return [_told(answer) for answer in answers]


async def _send(call: Any, messages: list[action_pb2.ActionCommand]) -> None:
    """Send requests and their end, or those of them that are taken: a function may end a call before it has read all of them."""
    with contextlib.suppress(grpc.RpcError, grpc.aio.BaseError, asyncio.InvalidStateError):
        for message in messages:
            await grpcio_wire.write(call, message.SerializeToString())
        await call.done_writing()


def _payload(request: actions.Request) -> action_pb2.ActionCommand:
    command = action_pb2.ActionCommand()
    command.payload.Pack(request)
    return command


def _told(response: action_pb2.ActionResponse) -> str:
    action = entity_pb2.ClientAction()
    kind = response.WhichOneof("response")
    if kind is not None:
        getattr(action, kind).CopyFrom(getattr(response, kind))
    return told(action, response.side_effects, actions.Response, actions.OtherRequest)
