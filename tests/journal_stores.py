"""Every store, opened for a test, behind the one interface: memory, SQLite, SQLite served to another process over gRPC, a real Redis server."""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future

from cloudstate_core.journal.api import Journal, JournalError, Operation, Outcome
from cloudstate_core.journal.memory import MemoryJournal
from cloudstate_core.journal.opening import open_journal
from cloudstate_core.journal.redis_address import redis_address
from cloudstate_core.journal.redis_journal import RedisJournal
from cloudstate_core.journal.server import JournalServer
from cloudstate_core.journal.sqlite import SqliteJournal
from cloudstate_core.transport import create
from tests.journals import PATIENCE
from tests.sqlite_modes import without_log

SHARDS = 8


@contextlib.contextmanager
def memory(folder: pathlib.Path) -> Iterator[Journal]:
    yield MemoryJournal("default/cart", SHARDS)


@contextlib.contextmanager
def sqlite(folder: pathlib.Path) -> Iterator[Journal]:
    journal = SqliteJournal(str(folder / "journal.db"), "default/cart", SHARDS)
    with contextlib.closing(journal):
        yield journal


@contextlib.contextmanager
def sqlite_without_log(folder: pathlib.Path) -> Iterator[Journal]:
    """The same where SQLite has no write-ahead log."""
    with without_log(), sqlite(folder) as journal:
        yield journal


@contextlib.contextmanager
def serving(folder: pathlib.Path) -> Iterator[int]:
    """A real server of an SQLite journal; its port."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    server = JournalServer(lambda keyspace, shards: SqliteJournal(str(folder / "journal.db"), keyspace, shards))
    try:
        yield asyncio.run_coroutine_threadsafe(server.start("127.0.0.1", 0), loop).result(PATIENCE)
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result(PATIENCE)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


@contextlib.contextmanager
def client(port: int) -> Iterator[Journal]:
    """A served journal, reached over a real transport."""
    transport = create("grpcio")
    opened: Future[Journal | JournalError] = Future()
    handler: list[Callable[..., bool]] = []
    transport.start(lambda events: [handler[0](event) for event in events] and None)

    def begin() -> None:
        on_event = open_journal(f"remote:127.0.0.1:{port}", "default/cart", SHARDS, transport, opened.set_result)
        assert on_event is not None
        handler.append(on_event)

    transport.post(begin)
    try:
        remote = opened.result(PATIENCE)
        assert not isinstance(remote, JournalError)
        yield Posted(remote, transport.post)
    finally:
        transport.stop()
        transport.join()


@contextlib.contextmanager
def served(folder: pathlib.Path) -> Iterator[Journal]:
    """An SQLite journal behind a server."""
    with serving(folder) as port, client(port) as journal:
        yield journal


def open_redis(url: str, keyspace: str, shards: int = SHARDS) -> Journal:
    """A journal in a Redis server; the error that makes it impossible is raised."""
    opened: Future[Journal | JournalError] = Future()
    RedisJournal(redis_address(url), keyspace, shards, opened.set_result)
    journal = opened.result(PATIENCE)
    if isinstance(journal, JournalError):
        raise journal
    return journal


class Posted:
    """A journal of the callback thread, used from the test's."""

    def __init__(self, journal: Journal, post: Callable[[Callable[[], None]], None]) -> None:
        self._journal, self._post, self.layout = journal, post, journal.layout

    def submit(self, operations: Sequence[Operation], done: Callable[[Sequence[Outcome]], None]) -> None:
        self._post(lambda: self._journal.submit(operations, done))

    def close(self) -> None:
        self._post(self._journal.close)


Store = Callable[[], contextlib.AbstractContextManager[Journal]]
"""Opens the same keyspace each time, with what was stored in it; `memory` begins anew."""
DURABLE = ("sqlite", "sqlite_without_log", "served", "redis")
STORES = ("memory", *DURABLE)


def store(name: str, folder: pathlib.Path, redis_url: Callable[[], str]) -> Store:
    """A store whose data are in `folder`, or in a keyspace of the server named after it."""
    if name == "redis":
        url, keyspace = redis_url(), f"contract/{folder.name}"
        return lambda: contextlib.closing(open_redis(url, keyspace))
    opening = {"memory": memory, "sqlite": sqlite, "sqlite_without_log": sqlite_without_log, "served": served}[name]
    return lambda: opening(folder)
