"""Gathers what one batch of events asks of the journal, so that it goes out as one submission; answers come on the callback thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from cloudstate_core.journal.api import Journal, Operation, Outcome
from cloudstate_core.transport.api import Transport

Handler = Callable[[Outcome], None]


class JournalBatch:
    """Made on the transport's callback thread and used there only."""

    def __init__(self, transport: Transport, journal: Journal) -> None:
        self._transport, self._journal = transport, journal
        self._operations: list[Operation] = []
        self._handlers: list[Handler] = []
        self._thread = threading.get_ident()

    def ask(self, operation: Operation, handler: Handler) -> None:
        """Perform an operation with the next `flush`; `handler` gets its outcome."""
        self._operations.append(operation)
        self._handlers.append(handler)

    def flush(self) -> None:
        """Submit what was asked, and what answers that come at once ask in turn."""
        while self._operations:
            operations, self._operations = self._operations, []
            handlers, self._handlers = self._handlers, []
            self._journal.submit(operations, lambda outcomes, handlers=handlers: self._outcomes(handlers, outcomes))  # type: ignore[misc]

    def _outcomes(self, handlers: Sequence[Handler], outcomes: Sequence[Outcome]) -> None:
        if threading.get_ident() != self._thread:
            self._transport.post(lambda: self._posted(handlers, outcomes))
            return
        mistake: Exception | None = None
        for handler, outcome in zip(handlers, outcomes, strict=True):
            try:
                handler(outcome)
            except Exception as error:  # it is told below: the others wait for theirs, and would for ever
                mistake = mistake or error
        if mistake is not None:
            raise mistake

    def _posted(self, handlers: Sequence[Handler], outcomes: Sequence[Outcome]) -> None:
        try:
            self._outcomes(handlers, outcomes)
        finally:
            self.flush()
