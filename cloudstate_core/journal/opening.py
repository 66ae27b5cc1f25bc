"""From a journal's address to an opened journal: `memory:`, `sqlite:PATH`, `remote:HOST:PORT` or `redis://HOST:PORT/DATABASE`."""

from __future__ import annotations

from collections.abc import Callable

from cloudstate_core.journal.api import Journal, JournalError
from cloudstate_core.journal.remote import RemoteJournal
from cloudstate_core.transport.api import EventHandler, Transport


def open_journal(
    url: str,
    keyspace: str,
    shard_count: int,
    transport: Transport,
    on_open: Callable[[Journal | JournalError], None],
    password: str = "",
) -> EventHandler | None:
    """Open a keyspace; `on_open` is called once, at once or later on the callback thread, with the journal or the error.

    `password` is that of a server; a URL should not carry it, since URLs are shown.

    Returns the handler that must be given the transport's stream events, for a journal that is reached over the transport.
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
            from cloudstate_core.journal.redis import RedisJournal

            RedisJournal(url, keyspace, shard_count, password).start(lambda result: transport.post(lambda: on_open(result)))
        else:
            raise JournalError(f"journal {url!r}: must be memory:, sqlite:PATH, remote:HOST:PORT or redis://HOST:PORT/DATABASE")
    except (JournalError, ValueError) as error:
        on_open(error if isinstance(error, JournalError) else JournalError(f"journal {url!r}: {error}"))
    return None
