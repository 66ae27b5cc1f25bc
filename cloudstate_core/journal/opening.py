"""From a journal's address to an opened journal: `memory:`, `sqlite:PATH` or `remote:HOST:PORT`."""

from __future__ import annotations

from collections.abc import Callable

from cloudstate_core.journal.api import Journal, JournalError
from cloudstate_core.journal.remote import RemoteJournal
from cloudstate_core.transport.api import EventHandler, Transport


def open_journal(
    url: str, keyspace: str, shard_count: int, transport: Transport, on_open: Callable[[Journal | JournalError], None]
) -> EventHandler | None:
    """Open a keyspace; `on_open` is called once, at once or later, with the journal or the error.

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
        else:
            raise JournalError(f"journal {url!r}: must be memory:, sqlite:PATH or remote:HOST:PORT")
    except JournalError as error:
        on_open(error)
    return None
