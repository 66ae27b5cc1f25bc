"""Streamed calls whose callers have gone, from when the function is told until it has answered.

A function need not answer. So one that is late is waited for no longer, but its answer is taken when it comes.
"""

from __future__ import annotations

from collections.abc import Callable

from stateful_proxy.crdt.surroundings import Command, Surroundings

CANCEL_LIMIT = 0.5
"""Seconds that a cancellation may be unanswered before others' changes are told again."""
LATE_REMEMBERED = 1_000
"""Cancelled calls whose answers may still come."""


class Cancellations:
    """Those of one stream. `on_late` hears that one is waited for no longer."""

    def __init__(self, around: Surroundings, on_late: Callable[[], None]) -> None:
        self._around, self._on_late = around, on_late
        self._open: dict[int, tuple[Command, int]] = {}
        self._late: dict[int, Command] = {}

    def __bool__(self) -> bool:
        """Some are waited for."""
        return bool(self._open)

    def begin(self, command: Command) -> None:
        """The function has been told."""
        self._open[command.number] = command, self._around.after(CANCEL_LIMIT, lambda: self._over(command))

    def _over(self, command: Command) -> None:
        if self._open.pop(command.number, None) is not None:
            self._wait_no_longer(command)
            self._on_late()

    def _wait_no_longer(self, command: Command) -> None:
        self._late[command.number] = command
        if len(self._late) > LATE_REMEMBERED:
            del self._late[next(iter(self._late))]

    def answered(self, number: int) -> Command | None:
        """The function has answered; None when there was nothing to answer."""
        command, timer = self._open.pop(number, (None, 0))
        if command is None:
            return self._late.pop(number, None)
        self._around.transport.cancel(timer)
        return command

    def failed(self, number: int) -> bool:
        """The function has told a failure instead; False when there was nothing to answer. It may be of a change that it was telling as the
        cancellation came, which it answers then."""
        command = self.answered(number)
        if command is not None:
            self._wait_no_longer(command)
        return command is not None

    def end(self) -> None:
        """The stream has ended."""
        for _, timer in self._open.values():
            self._around.transport.cancel(timer)
        self._open.clear()
