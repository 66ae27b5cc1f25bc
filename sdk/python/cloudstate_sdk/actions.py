"""Actions as a proxy calls them: four methods, one for each shape that a gRPC method may have.

A command yields or returns messages; `fail` ends the call. Side effects that a command has asked for go out with its next answer, or alone at
its end.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import grpc

from cloudstate_sdk.context import ActionContext, CommandFailed, Forward, reply
from cloudstate_sdk.definition import Command, Definition
from cloudstate_sdk.handling import failing, finished, text_of
from cloudstate_sdk.pb.cloudstate import action_pb2
from cloudstate_sdk.requests import parse

log = logging.getLogger(__name__)
In = action_pb2.ActionCommand
Out = action_pb2.ActionResponse


class Calls:
    """All actions of a function."""

    def __init__(self, definitions: dict[str, Definition]) -> None:
        self._definitions = definitions
        self._instances = {name: definition.entity() for name, definition in definitions.items()}

    def handlers(self) -> dict[str, Any]:
        """The protocol's methods."""
        make: dict[str, tuple[Any, Any]] = {
            "handleUnary": (grpc.unary_unary_rpc_method_handler, self._unary),
            "handleStreamedIn": (grpc.stream_unary_rpc_method_handler, self._streamed_in),
            "handleStreamedOut": (grpc.unary_stream_rpc_method_handler, self._streamed_out),
            "handleStreamed": (grpc.stream_stream_rpc_method_handler, self._streamed),
        }
        return {name: kind(method, In.FromString, Out.SerializeToString) for name, (kind, method) in make.items()}

    async def _unary(self, command: In, context: Any) -> Out:
        own = ActionContext("", command.metadata)
        try:
            target, run = self._find(command)
            return _response(await finished(run(parse(command, target), own)), own, target)
        except Exception as error:
            return _failure(error, own, command)

    async def _streamed_in(self, commands: AsyncIterator[In], context: Any) -> Out:
        first = await anext(commands, In())
        own = ActionContext("", first.metadata)
        try:
            target, run = self._find(first)
            return _response(await finished(run(_requests(commands, first, target, own), own)), own, target)
        except Exception as error:
            return _failure(error, own, first)

    async def _streamed_out(self, command: In, context: Any) -> AsyncIterator[Out]:
        own = ActionContext("", command.metadata)
        try:
            target, run = self._find(command)
            with failing():
                async with aclosing(run(parse(command, target), own)) as results:
                    async for response in _responses(results, own, target):
                        yield response
        except Exception as error:
            yield _failure(error, own, command)

    async def _streamed(self, commands: AsyncIterator[In], context: Any) -> AsyncIterator[Out]:
        first = await anext(commands, In())
        own = ActionContext("", first.metadata)
        try:
            target, run = self._find(first)
            with failing():
                async with aclosing(run(_requests(commands, first, target, own), own)) as results:
                    async for response in _responses(results, own, target):
                        yield response
        except Exception as error:
            yield _failure(error, own, first)

    def _find(self, command: In) -> tuple[Command, Callable[..., Any]]:
        """What a call's first message names. LookupError when there is no such method, or the message names none."""
        definition = self._definitions.get(command.service_name)
        target = definition.commands.get(command.name) if definition is not None else None
        if target is None:
            raise LookupError(f"{command.service_name or '(none)'}.{command.name or '(none)'}: this function has no such action")
        return target, getattr(self._instances[command.service_name], target.handler)


async def _requests(commands: AsyncIterator[In], first: In, target: Command, own: ActionContext) -> AsyncIterator[Any]:
    """The messages of a streamed request; its first command names the method only."""
    if first.HasField("payload"):
        yield parse(first, target)
    async for command in commands:
        own.received(command.metadata)
        yield parse(command, target)


async def _responses(results: AsyncIterator[Any], own: ActionContext, target: Command) -> AsyncIterator[Out]:
    async for result in results:
        yield _response(result, own, target)
    if own.effects:
        yield _response(None, own, target)


def _response(result: Any, own: ActionContext, target: Command) -> Out:
    response = Out()
    if isinstance(result, Forward):
        response.forward.CopyFrom(result.message)
    elif result is not None:
        reply(response.reply, result, target.wraps, own)
        own.replied.Clear()
    response.side_effects.extend(own.effects)
    own.effects.clear()
    return response


def _failure(error: Exception, own: ActionContext, command: In) -> Out:
    """A `fail` as it was said; any other exception is logged too. Side effects asked for before go out all the same."""
    if not isinstance(error, CommandFailed):
        log.error("%s.%s failed", command.service_name, command.name, exc_info=error)
    response = Out()
    response.failure.description = str(error) if isinstance(error, CommandFailed) else text_of(error)
    response.side_effects.extend(own.effects)
    return response
