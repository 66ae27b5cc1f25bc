"""Commands that wait while the user function is away, so that a function that restarts is not noticed by its callers.

Each waits until the function is back, its caller leaves, or its time is over; the number of those that wait is bounded.
"""

from __future__ import annotations

from collections.abc import Callable

from cloudstate_core.transport.api import REFUSED_HEADER, Status, Transport
from stateful_proxy.callers import Callers

HOLD_LIMIT = 10.0
"""Seconds that a command waits at most; its own deadline may be earlier."""
MAX_HELD = 10_000


class Absence:
    """Holds commands. `problem` says why the function cannot be asked, '' while it can."""

    def __init__(self, transport: Transport, callers: Callers) -> None:
        self._transport, self._callers = transport, callers
        self._held: dict[int, Callable[[], None]] = {}
        self._final = False
        """Nobody is waited for any more."""
        self.problem = ""

    @property
    def waiting(self) -> int:
        """Commands that wait now."""
        return len(self._held)

    def hold(self, call: int, path: str, resume: Callable[[], None]) -> None:
        """Go on with a call when the function is back."""
        if self._final:
            self._refuse(call)
            return
        if len(self._held) >= MAX_HELD:
            text = f"{path}: not executed: {self.problem}; {MAX_HELD} commands wait for it, no more are taken"
            self._callers.finish(call, Status.RESOURCE_EXHAUSTED, text)
            return
        self._held[call] = resume
        self._transport.after(HOLD_LIMIT, lambda: self._over(call, path, resume))

    def withdraw(self, call: int) -> bool:
        """The caller has gone; False when it does not wait here."""
        return self._held.pop(call, None) is not None

    def _over(self, call: int, path: str, resume: Callable[[], None]) -> None:
        if self._held.get(call) is resume:
            del self._held[call]
            self._callers.finish(call, Status.UNAVAILABLE, f"{path}: not executed: {self.problem}")

    def changed(self, problem: str, final: bool = False) -> None:
        """The function has gone or is back; `final`: it will not be back for this proxy."""
        self.problem, self._final = problem, self._final or final
        if problem and not final:
            return
        held, self._held = self._held, {}
        for call, resume in held.items():
            if final:
                self._refuse(call)
            else:
                resume()

    def _refuse(self, call: int) -> None:
        """Another proxy may take it."""
        self._callers.finish(call, Status.UNAVAILABLE, f"not executed: {self.problem}", [(REFUSED_HEADER, b"function-away")])
