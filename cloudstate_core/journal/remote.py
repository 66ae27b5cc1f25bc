"""A journal that another process serves, reached over a stream of the transport; used on the transport's callback thread only.

A batch is answered exactly once: with the server's outcomes; as Refused when it was never sent; as Unknown when the session broke before
the answer came. Sessions are opened again with back-off. A server that comes back with another journal id is refused for good: its data is
not the data that was acknowledged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cloudstate_core.journal import wire
from cloudstate_core.journal.answering import deliver
from cloudstate_core.journal.api import Done, Incompatible, Journal, JournalError, Layout, Operation, Refused, Unknown
from cloudstate_core.transport import api
from cloudstate_core.transport.api import Event, Transport

RETRY_FIRST, RETRY_LAST = 0.05, 2.0
"""Seconds between attempts to open a session: the first, and the longest."""
MAX_OUTSTANDING = 1_000


class RemoteJournal:
    """See `cloudstate_core.journal.api.Journal`. Feed it the events of its stream with `on_event`.

    `on_open` is called once: with the journal when the first session stands, or with the error that makes it impossible.
    """

    def __init__(
        self, transport: Transport, target: str, keyspace: str, shard_count: int, on_open: Callable[[Journal | JournalError], None]
    ) -> None:
        self._transport, self._target, self._keyspace, self._shard_count = transport, target, keyspace, shard_count
        self._on_open: Callable[[Journal | JournalError], None] | None = on_open
        self._upstream = transport.connect(target)
        self._layout: Layout | None = None
        self._replaced = ""
        self._stream = 0
        self._standing = self._closed = False
        self._retry = RETRY_FIRST
        self._number = 0
        self._outstanding: dict[int, tuple[int, Done]] = {}
        self._connect()

    @property
    def layout(self) -> Layout:
        """See Journal."""
        if self._layout is None:
            raise JournalError(f"journal at {self._target}: is not open yet")
        return self._layout

    def submit(self, operations: Sequence[Operation], done: Done) -> None:
        """See Journal."""
        reason = self._replaced or self._unavailable()
        if reason:
            done([Refused(reason)] * len(operations))
            return
        self._number += 1
        self._outstanding[self._number] = (len(operations), done)
        self._transport.send(self._stream, wire.encode(wire.Batch(self._number, list(operations))))

    def _unavailable(self) -> str:
        if self._closed:
            return f"journal at {self._target}: is closed"
        if not self._standing:
            return f"journal at {self._target}: cannot be reached; nothing was sent"
        if len(self._outstanding) >= MAX_OUTSTANDING:
            return f"journal at {self._target}: {MAX_OUTSTANDING} batches are unanswered, no more are sent"
        return ""

    def close(self) -> None:
        """See Journal."""
        self._closed = True
        self._transport.half_close(self._stream)

    def on_event(self, event: Event) -> bool:
        """Handle an event of the journal's stream; False when it belongs to another."""
        kind, stream, data, detail = event
        if stream != self._stream or kind not in (api.STREAM_MESSAGE, api.STREAM_CLOSED):
            return False
        if kind == api.STREAM_CLOSED:
            self._broken(f"{detail[1]}")
            return True
        message = wire.decode_response(data)
        if isinstance(message, wire.Outcomes):
            if (waiting := self._outstanding.pop(message.number, None)) is not None:
                deliver(waiting[1], message.outcomes)
        elif isinstance(message, wire.Opened):
            self._opened(message.layout)
        else:
            self._rejected(f"journal at {self._target}: {message.reason}")
        return True

    def _connect(self) -> None:
        if self._closed:
            return
        self._stream = self._transport.open(self._upstream, wire.PATH)
        self._transport.send(self._stream, wire.encode(wire.Open(self._keyspace, self._shard_count)))

    def _opened(self, layout: Layout) -> None:
        if self._layout is not None and self._layout.journal_id != layout.journal_id:
            self._replaced = (
                f"journal at {self._target}, keyspace {self._keyspace}: was {self._layout.journal_id} and is now {layout.journal_id}: "
                "a store that came back without its data is not written to"
            )
            return
        self._layout, self._standing, self._retry = layout, True, RETRY_FIRST
        self._tell(self)

    def _rejected(self, reason: str) -> None:
        """Final for a journal that never stood; a later session is tried again (the server may be waiting for the file itself)."""
        if self._layout is None:
            self._replaced, self._closed = reason, True
            self._tell(Incompatible(reason))

    def _tell(self, result: Journal | JournalError) -> None:
        if self._on_open is not None:
            on_open, self._on_open = self._on_open, None
            on_open(result)

    def _broken(self, why: str) -> None:
        """The session ended: what was sent and not answered is unknown; try again."""
        self._standing = False
        lost, self._outstanding = self._outstanding, {}
        if not self._closed:
            self._transport.after(self._retry, self._connect)
            self._retry = min(RETRY_LAST, self._retry * 2)
        for count, done in lost.values():
            deliver(done, [Unknown(f"journal at {self._target}: the connection was lost: {why}")] * count)
