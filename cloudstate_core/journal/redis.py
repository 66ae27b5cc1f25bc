"""The journal in Redis: shared by all pods of a cluster, as durable as the server is set up to be.

Operations of all callers that wait go in one round trip; each is one call of a Lua script, which Redis runs atomically. One connection in one
thread of its own keeps the order. Nothing is sent twice: what was under way when a connection broke has an unknown outcome, which the caller
settles by activating again; what could not be sent at all is refused.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.resources
import logging
import secrets
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

import redis.asyncio as client
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ConnectionError,
    NoScriptError,
    RedisError,
    ResponseError,
    TimeoutError,
)

from cloudstate_core.hashing import HASH_NAME
from cloudstate_core.journal.api import Done, Incompatible, Journal, JournalError, Layout, Operation, Outcome, Refused, Unknown
from cloudstate_core.journal.redis_rows import Keys, call_of, outcome_of

log = logging.getLogger(__name__)

ANSWER_LIMIT = 5.0
"""Seconds that Redis may take for a round trip; then its outcome is unknown."""
GROUP = 1_000
"""Operations in one round trip."""
MAX_WAITING = 100_000
"""Operations that may wait; more are refused."""
COMMAND_WINDOW = 24 * 3600
"""Seconds that commands are remembered."""
RETRY_FIRST, RETRY_LAST = 0.1, 2.0
OLDEST = (7, 0)
"""Before it, a script that finds memory full could stop half way."""

SCRIPT = importlib.resources.files("cloudstate_core.journal").joinpath("redis_journal.lua").read_text()
SHA = hashlib.sha1(SCRIPT.encode()).hexdigest()


def shown(url: str) -> str:
    """A URL without what must not be told."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}:{parts.port or 6379}{parts.path}"


class RedisJournal:
    """See `cloudstate_core.journal.api.Journal`; `done` is called on the journal's own thread. Made by `open_redis`."""

    def __init__(self, url: str, keyspace: str, shard_count: int, password: str = "") -> None:
        self._name = f"journal {shown(url)}"
        self._keyspace, self._keys = keyspace, Keys(keyspace)
        self._shard_count = shard_count
        self._layout: Layout | None = None
        options: dict[str, Any] = {"password": password} if password else {}
        self._redis: Any = client.from_url(
            url,
            max_connections=1,
            socket_timeout=ANSWER_LIMIT,
            socket_connect_timeout=ANSWER_LIMIT,
            retry=Retry(NoBackoff(), 0),
            **options,
        )
        self._waiting: deque[tuple[Sequence[Operation], Done]] = deque()
        self._count = 0
        self._submitting = threading.Lock()
        self._closed = False
        self._loop = asyncio.new_event_loop()
        self._wake = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        self._on_open: Callable[[Journal | JournalError], None] = lambda result: None
        self._down = False

    # Callers ------------------------------------------------------------------------------------------------------------

    def start(self, on_open: Callable[[Journal | JournalError], None]) -> None:
        """Open; `on_open` is called on the journal's thread. A server that cannot be reached is waited for."""
        self._on_open = on_open
        self._thread.start()

    @property
    def layout(self) -> Layout:
        """See Journal."""
        assert self._layout is not None, "the journal is not open yet"
        return self._layout

    def submit(self, operations: Sequence[Operation], done: Done) -> None:
        """See Journal."""
        with self._submitting:
            why = "is closed" if self._closed else f"queue is full: {MAX_WAITING} operations wait" if self._count >= MAX_WAITING else ""
            if not why:
                self._waiting.append((operations, done))
                self._count += len(operations)
                self._loop.call_soon_threadsafe(self._wake.set)
                return
        done([Refused(f"{self._name}: {why}")] * len(operations))

    def close(self) -> None:
        """See Journal."""
        with self._submitting:
            if self._closed:
                return
            self._closed = True
            if self._thread.is_alive():
                self._loop.call_soon_threadsafe(self._wake.set)
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join()

    # The journal's thread -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        self._loop.run_until_complete(self._main())
        self._loop.close()

    async def _main(self) -> None:
        try:
            if await self._opened():
                while not (self._closed and not self._waiting):
                    await self._wake.wait()
                    self._wake.clear()
                    while self._waiting:
                        await self._round()
        finally:
            await self._redis.aclose()

    async def _opened(self) -> bool:
        """Wait for the server and open the keyspace; False when it cannot be opened, or was closed meanwhile."""
        delay = RETRY_FIRST
        while not self._closed:
            try:
                self._layout = await self._open()
            except (ConnectionError, TimeoutError, BusyLoadingError, OSError) as error:
                if isinstance(error, AuthenticationError | AuthorizationError):
                    self._on_open(JournalError(f"{self._name}: the server refuses the credentials: {error}"))
                    return False
                log.warning("%s: %s; waiting for it", self._name, error)
                await asyncio.sleep(delay)
                delay = min(RETRY_LAST, delay * 2)
            except RedisError as error:
                self._on_open(JournalError(f"{self._name}: {error}"))
                return False
            except JournalError as error:
                self._on_open(error)
                return False
            else:
                self._on_open(self)
                return True
        return False

    async def _open(self) -> Layout:
        """Make the fences and then the layout once; afterwards compare."""
        await self._check_server()
        row = await self._redis.hmget(self._keys.layout, "journal_id", "shards", "hash", "format")
        if row[0] is None:
            await self._make_fences()
            wanted = [secrets.token_hex(8), self._shard_count, HASH_NAME, 1]
            row = await self._redis.eval(SCRIPT, 1, self._keys.layout, "layout", *wanted)
        await self._redis.script_load(SCRIPT)
        layout = Layout(row[0].decode(), int(row[1]), row[2].decode(), int(row[3]))
        if (layout.shard_count, layout.hash, layout.format) != (self._shard_count, HASH_NAME, 1):
            raise Incompatible(
                f"{self._name}, keyspace {self._keyspace}: has {layout.shard_count} shards, hash {layout.hash}, format {layout.format}; "
                f"asked for {self._shard_count}, {HASH_NAME}, 1: the layout of a keyspace never changes"
            )
        return layout

    async def _check_server(self) -> None:
        info = await self._redis.info()
        version = tuple(int(part) for part in str(info["redis_version"]).split(".")[:2])
        if version < OLDEST:
            raise JournalError(f"{self._name}: is Redis {info['redis_version']}; it must be {OLDEST[0]}.{OLDEST[1]} or newer")
        if info.get("role") != "master":
            raise JournalError(f"{self._name}: is a {info.get('role')}; it must be the primary: replicas may lag behind")
        if info.get("cluster_enabled"):
            raise JournalError(f"{self._name}: is a Redis Cluster; this release keeps a journal in a single primary")
        if info.get("maxmemory_policy", "noeviction") != "noeviction":
            raise JournalError(
                f"{self._name}: maxmemory-policy is {info['maxmemory_policy']}; it must be noeviction, or entities are lost when memory is full"
            )

    async def _make_fences(self) -> None:
        """All fences of a new keyspace; a keyspace that has lost its layout is not new."""
        pipe = self._redis.pipeline(transaction=False)
        for shard in range(self._shard_count):
            key = self._keys.fence(shard)
            for name, value in (("epoch", 0), ("nonce", secrets.token_bytes(8)), ("generation", 0), ("owner", "")):
                pipe.hsetnx(key, name, value)
            pipe.hget(key, "epoch")
        epochs = (await pipe.execute())[4::5]
        if any(epoch != b"0" for epoch in epochs):
            raise JournalError(f"{self._name}, keyspace {self._keyspace}: its layout was lost; restore the data, or use another keyspace")

    async def _round(self) -> None:
        """One round trip for what waits."""
        group: list[tuple[Sequence[Operation], Done]] = []
        with self._submitting:
            total = 0
            while self._waiting and (not group or total + len(self._waiting[0][0]) <= GROUP):
                group.append(self._waiting.popleft())
                total += len(group[-1][0])
            self._count -= total
        operations = [operation for batch, _ in group for operation in batch]
        outcomes = await self._perform(operations)
        position = 0
        for batch, done in group:
            try:
                done(outcomes[position : position + len(batch)])
            except Exception:
                log.exception("the receiver of a journal answer failed")
            position += len(batch)

    async def _perform(self, operations: Sequence[Operation]) -> list[Outcome]:
        if not operations:
            return []
        if self._down and (reason := await self._reconnect()):
            return [Refused(reason)] * len(operations)
        try:
            answers = await self._send(operations)
            if any(isinstance(answer, NoScriptError) for answer in answers):
                # The server has begun anew: none of these ran. Teach it the script and send them again.
                await self._redis.script_load(SCRIPT)
                answers = await self._send(operations)
        except (RedisError, OSError) as error:
            self._down = True
            await self._redis.connection_pool.disconnect()
            return [Unknown(f"{self._name}: no answer: {error!r}")] * len(operations)
        return [self._outcome(operation, answer) for operation, answer in zip(operations, answers, strict=True)]

    async def _send(self, operations: Sequence[Operation]) -> list[Any]:
        pipe = self._redis.pipeline(transaction=False)
        for operation in operations:
            names, arguments = call_of(operation, self._keys, COMMAND_WINDOW, secrets.token_bytes(8))
            pipe.execute_command("EVALSHA", SHA, len(names), *names, *arguments)
        answers: list[Any] = await pipe.execute(raise_on_error=False)
        return answers

    async def _reconnect(self) -> str:
        """'' when the server is there again, and is the journal that was opened; else why nothing can be sent."""
        try:
            row = await self._redis.hget(self._keys.layout, "journal_id")
        except (RedisError, OSError) as error:
            return f"{self._name}: cannot be reached: {error}"
        if row is None or row.decode() != self.layout.journal_id:
            return f"{self._name}: is not the journal {self.layout.journal_id} any more: its data was lost or replaced"
        self._down = False
        return ""

    def _outcome(self, operation: Operation, answer: Any) -> Outcome:
        """A refusal is definite when Redis says that it did not run the script."""
        if not isinstance(answer, Exception):
            return outcome_of(operation, answer)
        if isinstance(answer, ResponseError) and "@user_script" not in str(answer):
            return Refused(f"{self._name}: nothing was written: {answer}")
        return Unknown(f"{self._name}: {answer!r}")
