"""One key in memory: its keeper, its stream to the user function while there is one, and commands that wait for it."""

from __future__ import annotations

import time
from collections import deque
from typing import Protocol

from cloudstate_core.transport import api
from cloudstate_core.transport.api import Status
from stateful_proxy.crdt.keeper import Keeper
from stateful_proxy.crdt.session import Session
from stateful_proxy.crdt.storing import STORE_LIMIT
from stateful_proxy.crdt.surroundings import Command, Surroundings


class Registry(Protocol):
    """Knows all keys in memory."""

    def opened(self, entity: ReplicatedEntity, stream: int) -> None:
        """An entity has a stream."""

    def closed(self, stream: int) -> None:
        """An entity has lost its stream."""

    def answered(self, call: int) -> None:
        """Nobody waits for this call any more."""

    def forget(self, entity: ReplicatedEntity) -> None:
        """An entity leaves memory. Commands that wait for it go to a new one."""


class ReplicatedEntity:
    """One key in memory."""

    def __init__(self, registry: Registry, around: Surroundings, keeper: Keeper, service: str) -> None:
        self._registry, self._around, self.keeper, self.service = registry, around, keeper, service
        self.session: Session | None = None
        self.waiting: deque[Command] = deque()
        self.used = time.monotonic()
        self.idle_limit = 30.0

    @property
    def commands(self) -> int:
        """Calls that are at this key."""
        return len(self.waiting) + (self.session.commands if self.session is not None else 0)

    def take(self, command: Command) -> None:
        """One more command: for the function at once, or as soon as it can be."""
        self.used = time.monotonic()
        command.since = self.used
        if self.session is None or not self.session.accepts:
            self.waiting.append(command)
            self._settle()
        else:
            self._execute(command)

    def _execute(self, command: Command) -> None:
        assert self.session is not None
        self.session.execute(command, lambda: self._registry.answered(command.call))

    def cancelled(self, command: Command) -> None:
        """The caller of a command is gone."""
        if command in self.waiting:
            self.waiting.remove(command)
        else:
            command.gone = True
            command.delivery.leave()

    def _fail_waiting(self, text: str, until: float = float("inf")) -> None:
        """Commands that have waited since before `until` were not executed."""
        late = [command for command in self.waiting if command.since <= until]
        self.waiting = deque(command for command in self.waiting if command.since > until)
        self._settle()  # before they hear of it: who hears may call again, and a key that could not be read is read anew for that
        for command in late:
            self._registry.answered(command.call)
        for command in late:
            self._around.callers.finish(command.call, Status.UNAVAILABLE, f"{command.method.path}: not executed: {text}")

    # The keeper ---------------------------------------------------------------------------------------------------------

    def loaded(self, problem: str) -> None:
        """See Listener."""
        if problem:
            self._fail_waiting(problem)
        else:
            self._settle()

    def changed(self) -> None:
        """See Listener."""
        if self.session is not None:
            self.session.turn()
        else:
            self._settle()

    def idle(self) -> None:
        """See Listener."""
        self.changed()

    # The session --------------------------------------------------------------------------------------------------------

    def _ended(self, stream: int) -> None:
        self._registry.closed(stream)
        self.session = None
        self._settle()

    def _settle(self) -> None:
        """What comes next where there is no stream."""
        if self.session is not None or (self.keeper.replica.version < 0 and self.keeper.busy):
            return
        if self.keeper.replica.ended:
            self._registry.forget(self)
        elif self.keeper.replica.deleting:
            return  # by a stream that has ended since: what waits gets the next value
        elif self.waiting:
            session = self.session = Session(self._around, self.keeper, self.service, self._ended)
            self._registry.opened(self, session.stream)
            waiting, self.waiting = self.waiting, deque()
            for command in waiting:
                self._execute(command)
        elif not self.keeper.busy:
            self._registry.forget(self)

    # Time ---------------------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Leave memory after a while; commands do not wait for ever."""
        if self.waiting:
            what = self.keeper.problem or "the value that there was is being deleted"
            self._fail_waiting(what, now - STORE_LIMIT)
        if self.session is not None:
            self.session.tick(now)
        session = self.session
        if session is not None and session.quiet and not self.waiting and not self.keeper.busy and now - self.used >= self.idle_limit:
            session.close()

    def leave(self) -> None:
        """The proxy stops."""
        while self.waiting:
            command = self.waiting.popleft()
            self._registry.answered(command.call)
            text = f"{command.method.path}: not executed: this proxy stops"
            self._around.callers.finish(command.call, Status.UNAVAILABLE, text, [(api.REFUSED_HEADER, b"draining")])
        if self.session is not None:
            self.session.leave()
        else:
            self._settle()
