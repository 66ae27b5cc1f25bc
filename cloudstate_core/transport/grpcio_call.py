"""One server call of the grpcio transport: its request messages, and what policy asked for, in order.

Request messages are read by a task of the call's own, whoever asks for them, so that a forward that is refused loses none.
"""

from __future__ import annotations

import asyncio
import collections
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import grpc.aio

from cloudstate_core.transport import grpcio_wire
from cloudstate_core.transport.api import Header
from cloudstate_core.transport.grpcio_loop import EventLoop
from cloudstate_core.transport.grpcio_streams import Upstream

REPLAY = 1 << 20
"""Bytes of a streamed request kept so that a refused forward can be tried again; the first message is always kept."""


class Requests:
    """A call's request messages by index; kept until they are let go."""

    def __init__(self, source: AsyncIterator[bytes], loop: EventLoop) -> None:
        self._source, self._loop = source, loop
        self._kept: collections.deque[bytes] = collections.deque()
        self._from = self._bytes = 0
        self._ended = False
        self._fetching: asyncio.Task[None] | None = None

    @property
    def whole(self) -> bool:
        """Whether all messages so far can be had again."""
        return self._from == 0

    async def get(self, index: int) -> bytes | None:
        """The message of this index, None past the end; a cancelled wait loses nothing."""
        while index >= self._from + len(self._kept):
            if self._ended:
                return None
            if self._fetching is None:
                self._fetching = self._loop.spawn(self._fetch())
            await asyncio.wait({self._fetching})
        return self._kept[index - self._from]

    async def _fetch(self) -> None:
        message = None
        try:
            message = await anext(self._source, None)
        except (asyncio.CancelledError, grpc.RpcError, grpc.aio.BaseError):
            pass  # the call is over; its own task is told
        finally:
            self._fetching = None
            self._ended = message is None
        if message is not None:
            self._kept.append(message)
            self._bytes += len(message)

    def passed_on(self, index: int, answered: bool) -> None:
        """All before `index` were written upstream: let them go if they can or must not be asked for again."""
        if answered or (index > 1 and self._bytes > REPLAY):
            while self._from < index:
                self._bytes -= len(self._kept.popleft())
                self._from += 1


class Call:
    """A call in progress; `out` holds what policy asked for, in order."""

    def __init__(self, number: int, path: str, context: Any, requests: Requests) -> None:
        self.number, self.path, self.context, self.requests = number, path, context, requests
        self.forwarding = self.answered = self.late = self.begun = False
        self.aborted: tuple[grpc.StatusCode, str, Sequence[Header]] | None = None
        """How policy ends the call while it is away."""
        self.task: asyncio.Task[Any] | None = None
        self.unpaused = asyncio.Event()
        self.unpaused.set()
        self.waiting = 0
        """Bytes of its answer that wait for the caller."""
        self.awaited = False
        """Whether policy waits until there are none."""
        self.timer = 0
        """Rings at the limit that policy has set."""
        self.upstream: Upstream | None = None
        """Where it is forwarded to, from policy's wish to the outcome."""
        self.stream: Any = None
        """Its call there."""
        self.out: collections.deque[tuple[Any, ...]] = collections.deque()
        self._wake = asyncio.Event()

    def put(self, *item: Any) -> None:
        """Ask for one more thing."""
        self.out.append(item)
        self._wake.set()

    async def next(self) -> tuple[Any, ...]:
        """What to do next."""
        while not self.out:
            self._wake.clear()
            await self._wake.wait()
        return self.out.popleft()

    def send_to(self, upstream: Upstream, headers: Sequence[Header], remove: Sequence[str]) -> None:
        """Ask for a forward, and keep the upstream open for it even when policy forgets it meanwhile."""
        upstream.reserve()
        self.forwarding, self.upstream = True, upstream
        self.put("forward", upstream, headers, remove)

    def came_back(self) -> None:
        """The forward is over, or does not begin any more."""
        upstream, self.upstream = self.upstream, None
        if upstream is not None:
            upstream.end()

    def end(self, status: grpc.StatusCode, text: str, trailers: Sequence[Header]) -> None:
        """Set how it ends; grpc sends it when the call's task returns."""
        self.context.set_trailing_metadata(grpcio_wire.metadata(trailers))
        self.context.set_code(status)
        self.context.set_details(text)

    def expired(self) -> bool:
        """Whether the caller's deadline, or policy's limit, has passed."""
        remaining = self.context.time_remaining()
        return self.late or (remaining is not None and remaining <= 0)
