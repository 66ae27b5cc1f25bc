"""Gives the events of entities to the methods that subscribe to them: the owner of a shard consumes the shard's logs.

Each event is handled at least once, in the order of its shard's log; an entity's events are all in one shard. A new owner goes on at the
cursor. A method that fails, or that there is not, holds its consumer up in that shard until it succeeds: nothing is skipped. Commands on
entities carry a command id made of the event's place, so that an event delivered twice is executed once while ids are remembered.
"""

from __future__ import annotations

import logging
import random
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from urllib.parse import quote

from cloudstate_core.journal.api import At, Commit, Cursor, Fenced, LogEntry, LogPage, Outcome, ReadLog, Token
from cloudstate_core.pb.cloudstate import entity_pb2
from cloudstate_core.transport.api import Header, Status, Transport
from stateful_proxy.callers import Callers
from stateful_proxy.eventing.cloud_events import CloudEvent
from stateful_proxy.eventing.payloads import ANY_TYPE, metadata_of
from stateful_proxy.eventing.progress import Action, Deliver, Progress, ReadCursor, ReadPage, Rest, Save
from stateful_proxy.eventing.subscriptions import Subscription
from stateful_proxy.invocation import Invocation, Invoke
from stateful_proxy.journal_batch import JournalBatch
from stateful_proxy.lives import LossListener
from stateful_proxy.ownership import Tenants

log = logging.getLogger(__name__)

PAGE = 20
"""Events read at once."""
ANSWER_LIMIT = 90.0
"""Seconds that a method has to handle an event; more than an entity has to answer, whose own error says more."""


@dataclass(slots=True, eq=False)
class _Reader:
    """A consumer in a shard that this proxy owns."""

    shard: int
    token: Token
    subscription: Subscription
    progress: Progress = field(default_factory=Progress)
    gone: bool = False
    """The shard is not ours any more: nothing that was asked for counts."""
    problem: str = ""
    """What has been told of it already."""
    delivery: int = 0
    """Call that gives an event to a method now; 0: there is none."""
    method: str = ""
    """Path of that method."""
    given: float = 0.0
    """When, in monotonic seconds."""


class EventLogs:
    """All event log consumers of one proxy. Everything runs on the transport's callback thread."""

    def __init__(
        self,
        transport: Transport,
        batch: JournalBatch,
        callers: Callers,
        invoke: Invoke,
        cancel: Callable[[int], object],
        losses: LossListener,
        tenants: Tenants,
        subscriptions: Sequence[Subscription],
    ) -> None:
        """`tenants`: what else lives in the shards, told after this; `cancel`: tells who executes a call that nobody waits for it."""
        self._transport, self._batch, self._callers, self._losses = transport, batch, callers, losses
        self._invoke, self._cancel = invoke, cancel
        self._tenants, self._subscriptions = tenants, subscriptions
        self._readers: dict[int, list[_Reader]] = {}
        self._by_log: dict[tuple[int, str], list[_Reader]] = defaultdict(list)
        self.handled = self.failed = 0

    @property
    def wanted(self) -> bool:
        """Some method subscribes to events."""
        return bool(self._subscriptions)

    # What happens to shards ---------------------------------------------------------------------------------------------

    def owned(self, tokens: Mapping[int, Token]) -> None:
        """These are our shards now."""
        if not self._subscriptions:
            return
        for shard in [shard for shard, readers in self._readers.items() if tokens.get(shard) != readers[0].token]:
            self._forget(shard)
        for shard, token in tokens.items():
            if shard not in self._readers:
                self._begin(shard, token)

    def appended(self, shard: int, persistence_id: str) -> None:
        """This proxy has appended events."""
        for reader in self._by_log.get((shard, persistence_id), ()):
            self._do(reader, reader.progress.woken())

    def drain_shard(self, shard: int, done: Callable[[], None]) -> None:
        """The shard is about to be given up in good order: save how far its consumers have come, and begin nothing more."""
        self._leave(shard)
        self._tenants.drain_shard(shard, done)

    def drop_shard(self, shard: int) -> None:
        """The shard is lost."""
        for reader in self._readers.get(shard, ()):
            reader.gone = True
        self._tenants.drop_shard(shard)

    def stop(self) -> None:
        """This process ends."""
        for shard in self._readers:
            self._leave(shard)
        self._batch.flush()

    def _leave(self, shard: int) -> None:
        for reader in self._readers.get(shard, ()):
            if not reader.gone:
                self._do(reader, reader.progress.leave())
                reader.gone = True

    def tick(self, now: float) -> None:
        """To be called about once a second."""
        for readers in self._readers.values():
            for reader in readers:
                if not reader.gone:
                    self._do(reader, reader.progress.tick(now))
                    self._look_overdue(reader, now)

    def _begin(self, shard: int, token: Token) -> None:
        readers = self._readers[shard] = [_Reader(shard, token, subscription) for subscription in self._subscriptions]
        for reader in readers:
            self._by_log[shard, reader.subscription.source].append(reader)
            self._do(reader, reader.progress.begin())

    def _forget(self, shard: int) -> None:
        for reader in self._readers.pop(shard):
            reader.gone = True
            self._by_log.pop((shard, reader.subscription.source), None)
            if reader.delivery:  # it may go on for as long as any other, and nobody looks after it any more
                self._transport.after(ANSWER_LIMIT, partial(self._forsake, reader))

    # What consumers ask for ---------------------------------------------------------------------------------------------

    def _do(self, reader: _Reader, actions: Sequence[Action]) -> None:
        for action in actions:
            if reader.gone:
                return
            match action:
                case ReadCursor():
                    self._batch.ask(Cursor(reader.shard, reader.subscription.consumer), self._unless_gone(reader, self._cursor))
                case ReadPage(after):
                    question = ReadLog(reader.shard, reader.subscription.source, after, PAGE)
                    self._batch.ask(question, self._unless_gone(reader, self._page))
                case Save(offset):
                    operation = Commit(reader.shard, reader.token, reader.subscription.consumer, offset)
                    self._batch.ask(operation, lambda outcome: self._saved(reader, outcome))
                case Rest(seconds):
                    self._transport.after(seconds, lambda: self._rested(reader))
                case Deliver(entry):
                    self._deliver(reader, entry)

    def _unless_gone(self, reader: _Reader, answered: Callable[[_Reader, Outcome], None]) -> Callable[[Outcome], None]:
        return lambda outcome: None if reader.gone else answered(reader, outcome)

    def _cursor(self, reader: _Reader, outcome: Outcome) -> None:
        if isinstance(outcome, At):
            self._do(reader, reader.progress.cursor_is(outcome.offset, time.monotonic()))
        else:
            self._fail(reader, f"its cursor cannot be read: {outcome}")

    def _page(self, reader: _Reader, outcome: Outcome) -> None:
        if isinstance(outcome, LogPage):
            self._do(reader, reader.progress.page_is(outcome.entries, len(outcome.entries) == PAGE))
        else:
            self._fail(reader, f"the log cannot be read: {outcome}")

    def _saved(self, reader: _Reader, outcome: Outcome) -> None:
        if isinstance(outcome, Fenced):
            reader.gone = True
            self._losses.lost(reader.shard, reader.token, outcome.epoch)
        elif not isinstance(outcome, At):
            reader.progress.save_failed()

    def _rested(self, reader: _Reader) -> None:
        if not reader.gone:
            self._do(reader, reader.progress.rested())
            self._batch.flush()

    # Deliveries ---------------------------------------------------------------------------------------------------------

    def _deliver(self, reader: _Reader, entry: LogEntry) -> None:
        subscription, url = reader.subscription, entry.payload.type_url
        method = subscription.method_for(url)
        if method is None:
            self._fail(reader, subscription.unfit(url))
            return
        command_id = f"{quote(subscription.consumer)}/{reader.shard}/{entry.offset}"
        metadata = event_metadata(reader.shard, subscription.source, entry).SerializeToString()
        invocation = Invocation(method, entry.payload.data, metadata, command_id, type_url=url)
        delivery = _Delivery(self, reader)
        delivery.call = reader.delivery = self._callers.attach(delivery)
        reader.method, reader.given = method.path, time.monotonic()
        self._invoke(delivery.call, invocation)

    def ended(self, reader: _Reader, call: int, status: int, text: str) -> None:
        """A delivery has ended."""
        if reader.delivery != call:
            return  # it was given up, while its answer was being published
        reader.delivery = 0
        if reader.gone:
            return
        if status != Status.OK:
            self._fail(reader, f"the event was not handled: status {int(status)}: {text}")
            return
        self.handled += 1
        reader.problem = ""
        self._do(reader, reader.progress.was_handled(time.monotonic()))

    def _look_overdue(self, reader: _Reader, now: float) -> None:
        """A method that does not answer does not hold its consumer up for ever: the event is given again, as after any failure."""
        if reader.delivery and now - reader.given >= ANSWER_LIMIT:
            self._give_up(reader)
            self._fail(reader, f"{reader.method} has not answered within {ANSWER_LIMIT:g} s")

    def _forsake(self, reader: _Reader) -> None:
        """Nobody waits for a delivery any more, and its time is over."""
        self._give_up(reader)
        self._batch.flush()

    def _give_up(self, reader: _Reader) -> None:
        """Wait no longer for a delivery, if it has not ended."""
        call, reader.delivery = reader.delivery, 0
        if call:
            self._callers.detach(call)
            self._cancel(call)

    def _fail(self, reader: _Reader, problem: str) -> None:
        self.failed += 1
        if problem != reader.problem:
            reader.problem = problem
            subscription = reader.subscription
            log.warning("%s, shard %d, events of %s: %s; trying again", subscription.group, reader.shard, subscription.source, problem)
        self._do(reader, reader.progress.has_failed(random.random()))


class _Delivery:
    """Waits for the end of one delivery; what the method answers is nobody's concern here."""

    def __init__(self, logs: EventLogs, reader: _Reader) -> None:
        self._logs, self._reader, self.call = logs, reader, 0

    def message(self, payload: bytes, headers: Sequence[Header]) -> None:
        """An answer of the method."""

    def finish(self, status: int, text: str, trailers: Sequence[Header]) -> None:
        """The method is done."""
        self._logs.ended(self._reader, self.call, status, text)


def event_metadata(shard: int, persistence_id: str, entry: LogEntry) -> entity_pb2.Metadata:
    """The CloudEvent that an event is."""
    attributes = {
        "id": f"{shard}-{entry.offset}",
        "source": persistence_id,
        "specversion": "1.0",
        "type": entry.payload.type_url,
        "subject": entry.entity_id,
    }
    return metadata_of(CloudEvent(attributes, ANY_TYPE))
