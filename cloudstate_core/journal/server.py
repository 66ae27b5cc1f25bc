"""Serves a journal to other processes of the machine (or pod network) over gRPC: one stream a client, batches in, outcomes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import grpc
import grpc.aio
import msgspec

from cloudstate_core.journal import wire
from cloudstate_core.journal.api import Done, Journal, JournalError, Outcome

MAX_OUTSTANDING = 1_000
"""Batches of one client that may be unanswered; the server reads no more until some are answered."""


class JournalServer:
    """Opens each keyspace once, with `open_keyspace(keyspace, shard_count)`, and shares it between all clients."""

    def __init__(self, open_keyspace: Callable[[str, int], Journal]) -> None:
        self._open_keyspace = open_keyspace
        self._journals: dict[str, Journal] = {}
        self._server: grpc.aio.Server | None = None

    async def start(self, host: str, port: int) -> int:
        """Serve; returns the bound port."""
        method: Any = grpc.stream_stream_rpc_method_handler(self._session)
        service, name = wire.PATH.strip("/").split("/")
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1), ("grpc.so_reuseport", 0)]
        self._server = grpc.aio.server(handlers=[grpc.method_handlers_generic_handler(service, {name: method})], options=options)
        bound = self._server.add_insecure_port(f"{host}:{port}")
        await self._server.start()
        return bound

    async def stop(self) -> None:
        """End all sessions, then close the journals: everything submitted is finished."""
        if self._server is not None:
            await self._server.stop(0.5)
        for journal in self._journals.values():
            await asyncio.to_thread(journal.close)

    def open(self, keyspace: str, shard_count: int) -> Journal:
        """The shared journal of a keyspace, opened now if it is not yet; JournalError when it cannot be opened as asked."""
        journal = self._journals.get(keyspace)
        if journal is None:
            journal = self._journals[keyspace] = self._open_keyspace(keyspace, shard_count)
        elif journal.layout.shard_count != shard_count:
            raise JournalError(
                f"keyspace {keyspace}: has {journal.layout.shard_count} shards, asked for {shard_count}: "
                "the layout of a keyspace never changes"
            )
        return journal

    async def _session(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        try:
            first = wire.decode_request(await anext(aiter(requests), b""))
        except msgspec.MsgspecError:
            first = None
        if not isinstance(first, wire.Open):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the first frame of a journal session must be `open`")
            return
        try:
            journal = self.open(first.keyspace, first.shard_count)
        except JournalError as error:
            yield wire.encode(wire.Rejected(str(error)))
            return
        yield wire.encode(wire.Opened(journal.layout))
        session = _Session(journal)
        reader = asyncio.create_task(session.read(requests))
        try:
            while (answer := await session.answers.get()) is not None:
                yield answer
                session.outstanding.release()
            if session.error:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, session.error)
        finally:
            reader.cancel()


class _Session:
    """What one client has sent and not yet been answered."""

    def __init__(self, journal: Journal) -> None:
        self.answers: asyncio.Queue[bytes | None] = asyncio.Queue()
        """Encoded answers; None: no more follow. Bounded by `outstanding`, which is given back when an answer was written."""
        self.outstanding = asyncio.Semaphore(MAX_OUTSTANDING)
        self.error = ""
        self._journal = journal
        self._loop = asyncio.get_running_loop()

    async def read(self, requests: AsyncIterator[bytes]) -> None:
        """Submit what comes in, until the client ends; then let what is outstanding be answered."""
        try:
            async for message in requests:
                batch = wire.decode_request(message)
                if not isinstance(batch, wire.Batch):
                    raise msgspec.ValidationError("a session is opened once, then only batches follow")
                await self.outstanding.acquire()
                self._journal.submit(batch.operations, self._done(batch.number))
        except msgspec.MsgspecError as error:
            self.error = f"journal session: {error}"
        for _ in range(MAX_OUTSTANDING):
            await self.outstanding.acquire()
        self.answers.put_nowait(None)

    def _done(self, number: int) -> Done:
        """Answers come on the journal's thread and are handed to the loop."""

        def done(outcomes: Sequence[Outcome]) -> None:
            answer = wire.encode(wire.Outcomes(number, list(outcomes)))
            self._loop.call_soon_threadsafe(self.answers.put_nowait, answer)

        return done
