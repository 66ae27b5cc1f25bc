"""Replicated values as a proxy drives them: one stream for each key in memory, its value first.

Commands run at the same time, each on its own view of the value, and are answered as they finish: with its change when a command succeeds, with
none when it fails. Whoever streams is told each change after the answer that brought it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import grpc

from cloudstate_sdk.context import CommandFailed, answer
from cloudstate_sdk.crdt.context import Change, CrdtContext, StreamedContext
from cloudstate_sdk.crdt.replica import Replica
from cloudstate_sdk.definition import Definition
from cloudstate_sdk.handling import finished, text_of
from cloudstate_sdk.pb.cloudstate import crdt_pb2, entity_pb2
from cloudstate_sdk.requests import parse

log = logging.getLogger(__name__)
In = crdt_pb2.CrdtStreamIn
Out = crdt_pb2.CrdtStreamOut


def handler(definitions: dict[str, Definition]) -> Any:
    """The protocol's one method, over all CRDT entities of a function."""

    async def handle(requests: AsyncIterator[In], context: Any) -> AsyncIterator[Out]:
        first = await anext(aiter(requests), None)
        if first is None:
            return
        if not first.HasField("init"):
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "the first message of an entity's stream must be `init`")
        entity = LiveCrdt(definitions[first.init.service_name], first.init)
        reading = asyncio.create_task(entity.read(requests))
        try:
            while (message := await entity.out.get()) is not None:
                yield message
            await reading
        finally:
            reading.cancel()
            entity.close()

    return grpc.stream_stream_rpc_method_handler(handle, In.FromString, Out.SerializeToString)


class LiveCrdt:
    """One replicated value in memory. What it says is in `out`, at the end None."""

    def __init__(self, definition: Definition, init: crdt_pb2.CrdtInit) -> None:
        self.out: asyncio.Queue[Out | None] = asyncio.Queue()
        self._definition, self._entity_id = definition, init.entity_id
        self._entity = definition.entity()
        self.replica = Replica(definition.crdt, definition.descriptor.pool)
        if init.HasField("delta"):
            self.replica.apply(init.delta)
        self._streams: dict[int, StreamedContext[Any]] = {}
        self._telling = asyncio.Lock()
        self._running: set[asyncio.Task[None]] = set()

    async def read(self, requests: AsyncIterator[In]) -> None:
        """Do what the proxy says, until it says no more and everything is answered."""
        try:
            async for message in requests:
                await self._take(message)
            if self._running:
                await asyncio.wait(self._running)
        finally:
            self.out.put_nowait(None)

    async def answer(self, message: In) -> list[Out]:
        """Do one thing that the proxy says, to its end; what is said to the proxy then."""
        await self._take(message)
        if self._running:
            await asyncio.wait(set(self._running))
        return [self._said() for _ in range(self.out.qsize())]

    def _said(self) -> Out:
        said = self.out.get_nowait()
        assert said is not None
        return said

    def close(self) -> None:
        """Stop what is still running."""
        for task in self._running:
            task.cancel()

    async def _take(self, message: In) -> None:
        match message.WhichOneof("message"):
            case "command":
                self._run(self._command(message.command))
            case "stream_cancelled":
                self._run(self._cancelled(message.stream_cancelled.id))
            case "delta":
                self.replica.apply(message.delta)
                self._run(self._tell(list(self._streams)))
                await asyncio.sleep(0)  # who need not wait is told before the next message
            case "delete":
                self._delete()
            case kind:
                raise ValueError(f"{self._definition.service}: {kind or 'an empty message'} came in the middle of an entity's stream")

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    def _delete(self) -> None:
        """The value is gone; the proxy ends the streams."""
        self.replica.delete()
        self._streams.clear()

    async def _command(self, command: entity_pb2.Command) -> None:
        """Execute a command; a mistake of the handler fails it with its text, as a `fail` does."""
        target = self._definition.commands.get(command.name)
        kind = StreamedContext if target is not None and target.server_streaming else CrdtContext
        context: CrdtContext[Any] = kind(self._entity_id, self.replica, command.metadata)
        reply, seen = crdt_pb2.CrdtReply(command_id=command.id), self.replica.changes
        try:
            if target is None:
                raise LookupError(f"{self._definition.service}.{command.name}: this entity has no such command")
            result = getattr(self._entity, target.handler)(parse(command, target), context)
            answer(reply.client_action, await finished(result), target.wraps, context)
            missed = self.replica.changes != seen  # its answer may be older than that
            changed = self._settle(context, reply)
        except CommandFailed as failure:
            refusal = entity_pb2.Failure(command_id=command.id, description=str(failure))
            self._say(reply=crdt_pb2.CrdtReply(command_id=command.id, client_action=entity_pb2.ClientAction(failure=refusal)))
            return
        except Exception as error:
            self._broke(command.id, error)
            return
        finally:
            context.close()
        reply.side_effects.extend(context.effects)
        if command.streamed and isinstance(context, StreamedContext) and context.stays and not context.deleted:
            self._streams[command.id], reply.streamed = context, True
            context.wraps = target.wraps
        self._say(reply=reply)
        if told := [number for number in self._streams if (missed if number == command.id else changed)]:
            await self._tell(told)

    async def _cancelled(self, number: int) -> None:
        """The caller of a streamed command has gone: the last chance to change the value for it."""
        response = crdt_pb2.CrdtStreamCancelledResponse(command_id=number)
        stream, changed = self._streams.pop(number, None), False
        if stream is not None and stream.canceller is not None:
            context: CrdtContext[Any] = CrdtContext(self._entity_id, self.replica)
            try:
                await finished(stream.canceller(context))
                changed = self._settle(context, response)
            except Exception as error:
                self._broke(number, error)
                return
            finally:
                context.close()
            response.side_effects.extend(context.effects)
        self._say(stream_cancelled_response=response)
        if changed:
            await self._tell(list(self._streams))

    def _settle(self, context: CrdtContext[Any], answered: crdt_pb2.CrdtReply | crdt_pb2.CrdtStreamCancelledResponse) -> bool:
        """What was done in a context becomes part of the value and of the answer; whether it is a change to tell."""
        action = answered.state_action
        if context.deleted:
            self._delete()
            action.delete.SetInParent()
        elif (delta := self.replica.settle(context.view)) is not None:
            action.update.CopyFrom(delta)
        else:
            return False
        action.write_consistency = context.write_consistency.value
        return not context.deleted

    async def _tell(self, numbers: list[int]) -> None:
        """Tell these streams a change, one after the other, so that each hears of changes in their order."""
        async with self._telling:
            for number in numbers:
                if (stream := self._streams.get(number)) is not None and stream.watcher is not None:
                    await self._tell_one(number, stream)

    async def _tell_one(self, number: int, stream: StreamedContext[Any]) -> None:
        change: Change[Any] = Change(self._entity_id, self.replica)
        message = crdt_pb2.CrdtStreamedMessage(command_id=number)
        try:
            assert stream.watcher is not None
            answer(message.client_action, await finished(stream.watcher(change)), stream.wraps, change)
        except CommandFailed as failure:
            message.client_action.failure.command_id, message.client_action.failure.description = number, str(failure)
            change.ended = True
        except Exception as error:
            if self._streams.pop(number, None) is not None:
                self._broke(number, error)
            return
        message.side_effects.extend(change.effects)
        message.end_stream = change.ended
        if number not in self._streams:
            return
        if change.ended:
            del self._streams[number]
        if change.ended or change.effects or message.HasField("client_action"):
            self._say(streamed_message=message)

    def _broke(self, number: int, error: Exception) -> None:
        log.error("%s: command %d failed", self._definition.service, number, exc_info=error)
        self._say(failure=entity_pb2.Failure(command_id=number, description=text_of(error)))

    def _say(self, **message: Any) -> None:
        self.out.put_nowait(Out(**message))
