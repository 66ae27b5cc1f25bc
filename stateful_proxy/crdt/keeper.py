"""Keeps one key in step with the journal: reads it, swaps pending operations in, and tries again until the journal has them.

Guarantees: one request at a time; an operation is told as done once it is in the journal, and as lost if it never will be; what the journal
gave no definite answer to is read again before it is tried again.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from cloudstate_core.journal.api import EntityKey, Outcome, Read, Stored, Swap, Swapped, Value
from stateful_proxy.crdt import wire
from stateful_proxy.crdt.replica import Learned, Operation, Proposal, Replica
from stateful_proxy.crdt.state import Record

log = logging.getLogger(__name__)

RETRY_FIRST, RETRY_LAST = 0.05, 1.0
"""Seconds until the journal is asked again after it gave no answer or refused."""
RACE_STEP, RACE_LAST = 0.002, 0.05
"""Seconds that are waited, at random up to this much more for each race in a row that was lost to other replicas."""


@dataclass(frozen=True, slots=True)
class Ports:
    """What a keeper asks of the proxy."""

    ask: Callable[[Read | Swap, Callable[[Outcome], None]], None]
    """Of the journal, with the next flush."""
    after: Callable[[float, Callable[[], None]], object]
    """Call back after seconds, and flush then."""
    publish: Callable[[EntityKey, int, bytes | None], None]
    """Tell the other replicas: key, version, record."""
    living: Callable[[], frozenset[str]]
    """Replicas that are up."""


class Listener(Protocol):
    """Who serves the key."""

    def loaded(self, problem: str) -> None:
        """The key has been read for the first time, or could not be: why."""

    def changed(self) -> None:
        """The replica's state is another one, or its life has ended."""

    def idle(self) -> None:
        """Nothing waits for the journal any more."""


Settled = Callable[[int, str], None]
"""Hears what became of an operation: the version that has it and ''; or 0 and why it has no effect."""


class Keeper:
    """One key's replica and the journal."""

    def __init__(self, key: EntityKey, shard: int, name: str, ports: Ports) -> None:
        self.key, self.shard, self.replica = key, shard, Replica(name)
        self._ports = ports
        self._listener: Listener | None = None
        self._settled: dict[Operation, Settled] = {}
        self._waiting: list[Callable[[], None]] = []
        self._asking = False
        self._retry = RETRY_FIRST
        self._races = 0
        self._fold = True
        """Look for what departed replicas left, with the next swap."""
        self.problem = ""
        """Why the journal did not take the last request."""

    @property
    def _listens(self) -> Listener:
        assert self._listener is not None, "a keeper is started first"
        return self._listener

    @property
    def busy(self) -> bool:
        """Something waits for the journal."""
        return self._asking or bool(self.replica.pending)

    def start(self, listener: Listener) -> None:
        """Read the key for the first time."""
        self._listener = listener
        self.read()

    def members_changed(self) -> None:
        """Replicas have come or gone."""
        self._fold = True

    def keep(self, operation: Operation, settled: Settled) -> None:
        """Bring an operation of the replica's into the journal."""
        self._settled[operation] = settled
        self._go_on()

    # The journal --------------------------------------------------------------------------------------------------------

    def read(self, then: Callable[[], None] | None = None) -> None:
        """Read the key; `then` is called when that has been tried."""
        if then is not None:
            self._waiting.append(then)
        if not self._asking:
            self._asking = True
            self._ports.ask(Read(self.shard, self.key), self._was_read)

    def _was_read(self, outcome: Outcome) -> None:
        self._asking = False
        first = self.replica.version < 0
        ok = isinstance(outcome, Stored) and self._stored(outcome)
        if not ok:
            self._failed(outcome)
        self._tell_waiting()
        if first:
            self._listens.loaded("" if ok else self.problem)
        if ok:
            self._go_on()
        elif not first and not self._asking:  # else somebody wanted to read at once
            if self.replica.pending:
                self._again()
            else:
                self._listens.idle()

    def _tell_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        for then in waiting:
            then()

    def _go_on(self) -> None:
        """Swap what is pending, unless a request is under way."""
        if self._asking:
            return
        if not self.replica.pending:
            self._retry, self.problem = RETRY_FIRST, ""
            self._tell_waiting()  # they came in a pause, and what was to be swapped then has been settled by news
            if not self._asking:
                self._listens.idle()
            return
        self._asking = True
        proposal = self.replica.proposal(self._ports.living() if self._fold else None)
        data = wire.encoded(proposal.record) if proposal.record is not None else None
        value = Value(wire.TYPE_URL, data) if data is not None else None
        swap = Swap(self.shard, self.key, proposal.expected_version, value)
        self._ports.ask(swap, lambda outcome: self._swapped(outcome, proposal, data))

    def _swapped(self, outcome: Outcome, proposal: Proposal, data: bytes | None) -> None:
        self._asking = False
        if isinstance(outcome, Swapped):
            self._fold, self._races, self._retry, self.problem = False, 0, RETRY_FIRST, ""
            self._ports.publish(self.key, outcome.version, data)
            self._learn(outcome.version, proposal.record, proposal.covers)
            self._tell_waiting()
            self._go_on()
        elif isinstance(outcome, Stored) and self._stored(outcome, proposal.expected_version):
            self._races += 1
            self._tell_waiting()
            if self._races < 3:
                self._go_on()
            elif not self._asking:
                self._pause(random.uniform(0, min(RACE_LAST, RACE_STEP * self._races)), self._go_on)
        else:
            self.replica.in_doubt = True
            self._failed(outcome)
            self._again()

    def _stored(self, stored: Stored, at_least: int = 0) -> bool:
        """Take over what the journal has; False when that cannot be read. `at_least`: a version that it has told before."""
        try:
            record = wire.decoded(stored.value.data) if stored.value is not None else None
        except wire.Unreadable as error:
            self.problem = str(error)
            return False
        if stored.version >= at_least:
            self._learn(stored.version, record)
            return True
        text = "%s: the journal has version %d of a replicated value, not %d: it lost acknowledged writes; what is here is written again"
        log.error(text, self.key.persistence_id, stored.version, at_least)
        self._tell(self.replica.regressed(stored.version, record), stored.version)
        self._listens.changed()
        return True

    def _failed(self, outcome: Outcome) -> None:
        before = self.problem
        if not isinstance(outcome, Stored):
            self.problem = str(getattr(outcome, "reason", None) or f"the journal answered {type(outcome).__name__}")
        if self.problem != before:
            log.warning("%s: the journal does not serve a replicated value: %s", self.key.persistence_id, self.problem)

    def _again(self) -> None:
        """Read after a pause, then go on."""
        self._pause(self._retry, self.read)
        self._retry = min(RETRY_LAST, self._retry * 2)

    def _pause(self, seconds: float, then: Callable[[], None]) -> None:
        self._asking = True

        def over() -> None:
            self._asking = False
            then()

        self._ports.after(seconds, over)

    # News ---------------------------------------------------------------------------------------------------------------

    def hear(self, version: int, record: Record | None) -> None:
        """Another replica has brought this into the journal; only once the key has been read."""
        self._learn(version, record)

    def hear_of(self, version: int, then: Callable[[], None], tries: int = 3) -> None:
        """The journal has this version, or a later one; `then` is called when it is here too, or cannot be had."""
        if self.replica.version >= version or self.replica.ended or not tries:
            then()
        else:
            self.read(lambda: self.hear_of(version, then, tries - 1))

    def _learn(self, version: int, record: Record | None, covers: int = 0) -> None:
        news = version > self.replica.version
        learned = self.replica.learn(version, record, covers)
        self._tell(learned, version)
        if news:
            self._listens.changed()

    def _tell(self, learned: Learned, version: int) -> None:
        for operation in learned.done:
            self._settled.pop(operation)(version, "")
        for operation, reason in learned.lost:
            self._settled.pop(operation)(0, reason)
