"""The journal in a Redis server, used directly by every proxy of a service: the rules run inside the server, as Lua scripts.

One thread with an event loop owns the one connection. What is submitted while a pipeline is under way gathers and goes out with the next, in
one round trip. A batch is answered exactly once: with the server's outcomes; as Refused when it was never sent, or the server said that it
did nothing; as Unknown when the connection was lost before the answer came. Connections are made again with back-off. A server that comes
back without its data, or with other data, is not written to: its journal id tells.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import threading
from collections import deque
from collections.abc import Callable, Sequence

from cloudstate_core.journal.api import (
    Check,
    Claimed,
    Done,
    Fenced,
    Journal,
    JournalError,
    Layout,
    Lookup,
    Operation,
    Outcome,
    Raced,
    Refused,
    Sealed,
    Unknown,
)  # fmt: skip
from cloudstate_core.journal.redis_address import RedisAddress
from cloudstate_core.journal.redis_calls import ShardCall, settle, shard_calls
from cloudstate_core.journal.redis_format import SCRIPTS, Names, packed
from cloudstate_core.journal.redis_layout import open_layout
from cloudstate_core.journal.redis_link import Link, Lost, Unfit

log = logging.getLogger(__name__)

RETRY_FIRST, RETRY_LAST = 0.05, 2.0
"""Seconds between attempts to connect: the first, and the longest."""
MAX_WAITING = 20_000
"""Operations that may wait for the connection; more are refused."""
GROUP = 2_000
"""Operations of one pipeline; a larger batch is still sent whole."""
IDLE = 1.0
"""Seconds without work after which the server is asked whether it is still there."""

_Batch = tuple[Sequence[Operation], Done]


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
        self._waiting: deque[_Batch] = deque()
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
            try:
                await link.connect()
                self._layout = await open_layout(link, self._where, self._names, self._shard_count, self._layout)
                delay, told = RETRY_FIRST, ""
                self._start_taking()
                await self._serve(link)
            except Lost as error:
                problem = f"{self._where}: the connection was lost: {error}"
            except Unfit as error:
                problem = str(error)
            except JournalError as error:
                problem = str(error)
                if self._layout is None:
                    self._tell(error)
                    return
            finally:
                await link.close()
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
            self._answer(done, [Refused(reason)] * len(operations))

    def _answer(self, done: Done, outcomes: Sequence[Outcome]) -> None:
        try:
            done(outcomes)
        except Exception:  # the caller's fault must not end the journal of everybody else
            log.exception("the receiver of a journal answer failed")

    # Serving ------------------------------------------------------------------------------------------------------------

    async def _serve(self, link: Link) -> None:
        """Send what waits, until closed; Lost, Unfit or JournalError when the server must be looked at anew."""
        while True:
            group = self._take()
            if group:
                await self._perform(link, group)
            elif self._closing:
                return
            else:
                await self._wait(IDLE)
                if self._idle and not self._closing:
                    await link.exchange([packed(b"PING")], 1)

    def _take(self) -> list[_Batch]:
        group: list[_Batch] = []
        size = 0
        with self._lock:
            while self._waiting and size < GROUP:
                batch = self._waiting.popleft()
                size += len(batch[0])
                group.append(batch)
            self._count -= size
            self._idle = not group
        return group

    async def _perform(self, link: Link, group: list[_Batch]) -> None:
        """One pipeline for a group of batches; each batch gets its outcomes, whatever happens."""
        operations = [operation for batch, _ in group for operation in batch]
        outcomes: list[Outcome | None] = [None] * len(operations)
        reason = "ended by a mistake of its own"
        try:
            calls = shard_calls(self._where, self._names, self.layout, enumerate(operations), outcomes)
            anew = await self._exchange(link, calls, outcomes)
        except Lost as error:
            reason = f"the connection was lost before the answer came: {error}"
            raise
        finally:
            settled = [outcome or Unknown(f"{self._where}: {reason}") for outcome in outcomes]
            begin = 0
            for batch, done in group:
                self._answer(done, settled[begin : begin + len(batch)])
                begin += len(batch)
        if anew:
            raise Unfit(f"{self._where}: the server is not what it was when it was connected to: {anew}")

    async def _exchange(self, link: Link, calls: dict[int, ShardCall], outcomes: list[Outcome | None], load: bool = False) -> str:
        """Ask, and put the outcomes in their places. Why the server must be looked at anew; '' if it need not."""
        loads = [script.load() for script in SCRIPTS] if load else []
        problem: Lost | None = None
        try:
            answers = await link.exchange([*loads, *(call.packed() for call in calls.values())], len(loads) + len(calls))
        except Lost as error:
            answers, problem = error.answers, error
        anew = ""
        unloaded: dict[int, ShardCall] = {}
        readable: list[tuple[int, Operation]] = []
        for (shard, call), answer in zip(calls.items(), answers[len(loads) :], strict=problem is None):
            if not load and isinstance(answer, str) and answer.startswith("NOSCRIPT"):
                unloaded[shard] = call
                continue
            if settle(self._where, call, answer, outcomes):
                anew = str(answer)
            if isinstance(answer, str) and answer.startswith("OOM"):
                readable += [(place, operation) for place, operation in call.asked if isinstance(operation, Check | Lookup)]
            self._watch(shard, [outcomes[place] for place, _ in call.asked])
        if problem is not None:
            raise problem
        if unloaded:
            anew = await self._exchange(link, unloaded, outcomes, load=True)
        if readable:  # nothing was written, so what only reads may as well be asked alone
            anew = await self._exchange(link, shard_calls(self._where, self._names, self.layout, readable, outcomes), outcomes)
        return anew

    def _watch(self, shard: int, outcomes: Sequence[Outcome | None]) -> None:
        """Epochs only grow, unless the store has lost acknowledged writes: that is told once."""
        for outcome in outcomes:
            if isinstance(outcome, Claimed):
                epoch = outcome.token.epoch
            elif isinstance(outcome, Sealed | Fenced | Raced):
                epoch = outcome.epoch
            else:
                continue
            if epoch < self._epochs.get(shard, 0):
                was = self._epochs[shard]
                log.error("%s: shard %d is at epoch %d, was at %d: the store lost acknowledged writes", self._where, shard, epoch, was)
            self._epochs[shard] = epoch
