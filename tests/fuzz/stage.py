"""What scripts do alike, whatever the kind of component: callers leave, others carry out what was asked, and the journal behind entities fails."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from cloudstate_core.journal.api import Refused, Unknown
from stateful_proxy.callers import Callers
from stateful_proxy.eventing.publication import Publications
from stateful_proxy.follow_ups import FollowUps
from stateful_proxy.service import MethodInfo
from tests.fuzz.draw import Draw
from tests.fuzz.follow_ups import Broker, Elsewhere
from tests.stateful_proxy.conftest import FakeTransport


class Stage(ABC):
    """Calls of a component, with the callers and the other methods that a script plays."""

    def __init__(self, transport: FakeTransport, callers: Callers, follow_ups: FollowUps, flush: Callable[[], None] = lambda: None) -> None:
        """`flush` sends what was asked of the journal, where there is one."""
        self.transport, self.callers, self.flush = transport, callers, flush
        self.elsewhere = Elsewhere(callers)
        follow_ups.invoke, follow_ups.cancel = self.elsewhere.invoke, self.elsewhere.cancel
        self.broker = Broker()
        self.publications = Publications(callers, self.broker, self._cancel, lambda call: self.drained(call))

    @abstractmethod
    def made(self) -> int:
        """Calls so far; they are numbered from 1."""

    @abstractmethod
    def cancelled(self, call: int) -> None:
        """Tell the room under test that a caller is gone."""

    @abstractmethod
    def drained(self, call: int) -> None:
        """Tell the room under test that nothing of a call waits to be published."""

    def published(self, method: MethodInfo) -> None:
        """The next call is one of this method, whose answers may have to be published."""
        if method.out:
            self.publications.begin(self.made() + 1, method)

    def leave(self, draw: Draw) -> None:
        """A caller goes away."""
        if calls := self.waiting():
            call = draw.choice(calls)
            self.transport.gone.add(call)
            self._cancel(call)
            self.flush()

    def _cancel(self, call: int) -> None:
        """Nobody waits for a call, so whoever executes it is told."""
        self.callers.detach(call)
        self.cancelled(call)
        self.elsewhere.cancel(call)

    def waiting(self) -> list[int]:
        """Calls without an answer whose callers wait."""
        ended = self.transport.answers.keys() | self.transport.gone
        return [call for call in range(1, self.made() + 1) if call not in ended]

    def others(self, draw: Draw) -> None:
        """A forward or an effect is carried out, an answer is published."""
        (self.broker if draw.flag() else self.elsewhere).step(draw)
        self.flush()


class EntityStage(Stage):
    """Of entities, on a bench with a journal. `operations`: those of the journal that may fail."""

    operations: tuple[type, ...]

    def __init__(self, bench: Any, follow_ups: FollowUps) -> None:
        self.bench = bench
        super().__init__(bench.transport, bench.callers, follow_ups, bench.batch.flush)

    def made(self) -> int:
        """See Stage."""
        return int(self.bench.calls)

    def drained(self, call: int) -> None:
        """See Stage: entities hold nothing back."""

    def journal(self, draw: Draw) -> None:
        """The journal is slow, or fails."""
        journal = self.bench.journal
        match draw.below(4):
            case 0:
                journal.holding = True
            case 1:
                self.release()
            case _:
                operation, outcome = draw.choice(self.operations), draw.choice((Unknown("timeout"), Refused("full")))
                journal.fail(operation, outcome, applied=isinstance(outcome, Unknown) and draw.flag())

    def release(self) -> None:
        """The journal answers what it has held back."""
        self.bench.journal.release()
        self.flush()
