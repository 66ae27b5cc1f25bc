"""The journal in a Redis server, used directly by every proxy of a service: the rules run inside the server, as Lua scripts.

One thread with an event loop owns the one connection. What waits goes out together, in one pipeline, and some pipelines may be under way. A
batch is answered exactly once: with the server's outcomes; as Refused when it was never sent, or the server said that it did nothing; as
Unknown when the connection was lost before the answer came. Connections are made again with back-off. A server that comes back without its
data, or with other data, is not written to: its journal id tells.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import threading
from collections import deque
from collections.abc import Callable, Sequence

from cloudstate_core.journal.answering import deliver
from cloudstate_core.journal.api import Done, Journal, JournalError, Layout, Operation, Refused
from cloudstate_core.journal.redis_address import RedisAddress
from cloudstate_core.journal.redis_flights import Batch, Flights
from cloudstate_core.journal.redis_format import Names, packed
from cloudstate_core.journal.redis_layout import open_layout
from cloudstate_core.journal.redis_link import Link, Lost, Unfit

log = logging.getLogger(__name__)

RETRY_FIRST, RETRY_LAST = 0.05, 2.0
"""Seconds between attempts to connect: the first, and the longest."""
MAX_WAITING = 20_000
"""Operations that may wait for the connection; more are refused."""
GROUP = 128
"""Operations of one pipeline; a larger batch is still sent whole."""
DEPTH = 8
"""Pipelines under way: while the server works on one, the next is made."""
IDLE = 1.0
"""Seconds without work after which the server is asked whether it is still there."""


class RedisJournal:
    """See `cloudstate_core.journal.api.Journal`; `done` is called on the journal's own thread, or at once for what is refused unsent.

    `on_open` is called once, on the journal's thread: with the journal when it is open, or with the error that makes it impossible. A server
    that cannot be reached is tried again until `close`.
    """

    def __init__(self, address: RedisAddress, keyspace: str, shard_count: int, on_open: Callable[[Journal | JournalError], None]) -> None:
        self._where = f"journal {address}, keyspace {keyspace}"
        self._address, self._keyspace, self._shard_count = address, keyspace, shard_count
        self._on_open: Callable[[Journal | JournalError], None] | None = on_open
        self._names = Names(keyspace)
        self._layout: Layout | None = None
        self._lock = threading.Lock()
        self._waiting: deque[Batch] = deque()
        self._count = 0
        self._refusal = f"{self._where}: is not open yet"
        self._idle = self._closing = False
        self._epochs: dict[int, int] = {}
        self._loop = asyncio.new_event_loop()
        self._woken = asyncio.Event()
        self._thread = threading.Thread(target=self._main, name=f"journal {address}", daemon=True)
        self._thread.start()

    @property
    def layout(self) -> Layout:
        """See Journal."""
        if self._layout is None:
            raise JournalError(f"{self._where}: is not open yet")
        return self._layout

    def submit(self, operations: Sequence[Operation], done: Done) -> None:
        """See Journal."""
        with self._lock:
            refusal = f"{self._where}: is closed" if self._closing else self._refusal
            if not refusal and self._count >= MAX_WAITING:
                refusal = f"{self._where}: queue is full: {self._count} operations wait, no more are taken"
            if not refusal:
                self._waiting.append((operations, done))
                self._count += len(operations)
                wake, self._idle = self._idle, False
        if refusal:
            done([Refused(refusal)] * len(operations))
        elif wake:
            self._loop.call_soon_threadsafe(self._woken.set)

    def close(self) -> None:
        """See Journal."""
        with self._lock:
            self._closing = True
        if threading.current_thread() is not self._thread:
            with contextlib.suppress(RuntimeError):  # the loop may have ended
                self._loop.call_soon_threadsafe(self._woken.set)
            self._thread.join()

    # The thread ---------------------------------------------------------------------------------------------------------

    def _main(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._run())
        except Exception as error:
            log.exception("%s: ended", self._where)
            self._stop_taking(f"{self._where}: ended by a mistake of its own")
            self._tell(JournalError(f"{self._where}: {error}"))

    async def _run(self) -> None:
        delay, told = RETRY_FIRST, ""
        while not self._closing:
            link, problem = Link(self._address), ""
            flights: Flights | None = None
            try:
                await link.connect()
                self._layout = await open_layout(link, self._where, self._names, self._shard_count, self._layout)
                flights = Flights(link, self._where, self._names, self._layout, self._epochs)
                delay, told = RETRY_FIRST, ""
                self._start_taking()
                await self._serve(flights, link)
            except Lost as error:
                problem = f"{self._where}: the connection was lost: {error}"
            except Unfit as error:
                problem = str(error)
            except JournalError as error:
                problem = str(error)
                if self._layout is None:
                    self._tell(error)
                    return
            except Exception as error:
                log.exception("%s", self._where)
                problem = f"{self._where}: a mistake of its own: {error!r}"
            finally:
                await link.close()
                if flights is not None:
                    flights.abandon(problem)
                self._stop_taking(problem or f"{self._where}: is closed")
            if problem and not self._closing:
                if problem != told:
                    log.warning("%s; trying again", problem)
                told = problem
                await self._wait(delay * random.uniform(0.5, 1.0))
                delay = min(RETRY_LAST, delay * 2)
        self._tell(JournalError(f"{self._where}: was closed before it was open"))

    def _tell(self, result: Journal | JournalError) -> None:
        if self._on_open is not None:
            on_open, self._on_open = self._on_open, None
            on_open(result)

    async def _wait(self, seconds: float) -> None:
        """Until woken, or the time is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        self._woken.clear()

    def _start_taking(self) -> None:
        with self._lock:
            self._refusal = ""
        self._tell(self)

    def _stop_taking(self, reason: str) -> None:
        """Refuse what waits, which was never sent, and what comes."""
        with self._lock:
            self._refusal = reason
            unsent, self._waiting = self._waiting, deque()
            self._count = 0
        for operations, done in unsent:
            deliver(done, [Refused(reason)] * len(operations))

    # Serving ------------------------------------------------------------------------------------------------------------

    async def _serve(self, flights: Flights, link: Link) -> None:
        """Keep pipelines under way, until closed; Lost or Unfit when the server must be looked at anew."""
        while True:
            while len(flights) < DEPTH and (group := self._take()):
                await flights.send(group)
            if flights:
                await flights.receive()
            elif self._closing and not self._waiting:
                return
            else:
                await self._wait(IDLE)
                if self._idle and not self._closing:
                    await link.exchange([packed(b"PING")], 1)

    def _take(self) -> list[Batch]:
        """What goes out next: whole batches."""
        group: list[Batch] = []
        size = 0
        with self._lock:
            while self._waiting and size < GROUP:
                batch = self._waiting.popleft()
                size += len(batch[0])
                group.append(batch)
            self._count -= size
            self._idle = not group
        return group
