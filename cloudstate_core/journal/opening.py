"""From a journal's address to an opened journal: `memory:`, `sqlite:PATH`, `remote:HOST:PORT`, `redis://…` or `rediss://…`."""

from __future__ import annotations

import re
from collections.abc import Callable

from cloudstate_core.journal.api import Journal, JournalError
from cloudstate_core.journal.remote import RemoteJournal
from cloudstate_core.transport.api import EventHandler, Transport

_RULE = "must be memory:, sqlite:PATH, remote:HOST:PORT, redis://HOST:PORT/DATABASE or rediss://HOST:PORT/DATABASE"


def shown(url: str) -> str:
    """A journal's address without user and password: what may be logged and told."""
    return re.sub(r"//.*@", "//", url)


def open_journal(
    url: str,
    keyspace: str,
    shard_count: int,
    transport: Transport,
    on_open: Callable[[Journal | JournalError], None],
    password: str = "",
) -> EventHandler | None:
    """Open a keyspace; `on_open` is called once on the callback thread, at once or later, with the journal or the error.

    `password` is for the stores that need one; it wins over one in the URL. Returns the handler that must be given the transport's stream
    events, for a journal that is reached over the transport.
    """
    scheme, _, rest = url.partition(":")
    try:
        if scheme == "remote" and rest:
            return RemoteJournal(transport, rest, keyspace, shard_count, on_open).on_event
        if scheme == "memory":
            from cloudstate_core.journal.memory import MemoryJournal

            on_open(MemoryJournal(keyspace, shard_count))
        elif scheme == "sqlite" and rest:
            from cloudstate_core.journal.sqlite import SqliteJournal

            on_open(SqliteJournal(rest, keyspace, shard_count))
        elif scheme in ("redis", "rediss"):
            _open_redis(url, password, keyspace, shard_count, lambda result: transport.post(lambda: on_open(result)))
        else:
            raise JournalError(f"journal {shown(url)!r}: {_RULE}")
    except JournalError as error:
        on_open(error)
    return None


def _open_redis(url: str, password: str, keyspace: str, shard_count: int, on_open: Callable[[Journal | JournalError], None]) -> None:
    """The `redis` package is imported here only: a proxy on another store neither has it nor waits for it."""
    from cloudstate_core.journal.redis_address import redis_address

    address = redis_address(url, password)
    try:
        from cloudstate_core.journal.redis_journal import RedisJournal
    except ImportError as error:
        raise JournalError(f"journal {address}: needs the package redis, which is not installed: {error}") from error
    RedisJournal(address, keyspace, shard_count, on_open)
