"""Answers of methods that declare a topic are published to it before their callers get them, whoever the callers are.

Guarantees: answers of one call are published in their order; a caller gets an answer only once it is published, and an error when it could not
be. The command was executed then: asked for again by its id it is not executed again, but published, with the id that it had. So at least
once.
"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Protocol

from google.protobuf import any_pb2
from google.protobuf.message import DecodeError

from cloudstate_core.transport.api import Header, Status
from stateful_proxy.callers import Callers, Sink, Wrapping
from stateful_proxy.eventing.cloud_events import CloudEvent
from stateful_proxy.eventing.payloads import event_of
from stateful_proxy.metadata import carried
from stateful_proxy.service import ANY, MethodInfo

Done = Callable[[str], None]
"""Hears how a publication ended: '' or the problem."""


class EventSink(Protocol):
    """Where events go."""

    def publish(self, topic: str, event: CloudEvent, done: Done) -> None:
        """Publish one event; `done` is called later, on the transport's callback thread."""


class Publications:
    """The calls whose answers are published. Everything runs on the transport's callback thread."""

    def __init__(self, callers: Callers, sink: EventSink | None, cancel: Callable[[int], object], drained: Callable[[int], object]) -> None:
        """`cancel` tells who executes a call that its answers are wanted no more; `drained`: those of a call are published, more may follow."""
        self._callers, self._sink, self._cancel, self._drained = callers, sink, cancel, drained
        self.published = self.failed = 0

    def begin(self, call: int, method: MethodInfo, key: str = "", command_id: str = "") -> None:
        """A method that declares a topic is executed here: publish its answers. `key`: of its entity."""
        identity = f"{method.path}\n{key}\n{command_id}" if command_id else str(uuid.uuid4())
        self._callers.wrap(call, method.path, method.server_streaming, lambda inner: _Publishing(self, call, method, identity, inner))

    def withdraw(self, call: int, method: MethodInfo) -> None:
        """The method is not executed here after all."""
        if method.out:
            self._callers.unwrap(call)

    def publish(self, publishing: _Publishing, payload: bytes, headers: Sequence[Header]) -> None:
        """Publish one answer."""
        assert self._sink is not None
        method = publishing.method
        type_url, value = method.output_url, payload
        if method.output_type == ANY:
            try:
                whole = any_pb2.Any.FromString(payload)
            except DecodeError:
                publishing.published("the answer is no google.protobuf.Any")
                return
            if not whole.type_url:
                publishing.published("the answer has no type URL, and every event has a type")
                return
            type_url, value = whole.type_url, whole.value
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        event = event_of(type_url, value, headers, method.service, publishing.next_id(), now)
        self._sink.publish(method.out, event, publishing.published)

    def ended(self, publishing: _Publishing, problem: str) -> None:
        """One answer is published, or could not be."""
        if problem:
            self.failed += 1
            self._callers.detach(publishing.call)
            self._cancel(publishing.call)
        else:
            self.published += 1

    def emptied(self, call: int) -> None:
        """Nothing of a call waits to be published."""
        self._drained(call)


class _Publishing(Wrapping):
    """Stands between one call and its caller."""

    def __init__(self, publications: Publications, call: int, method: MethodInfo, identity: str, inner: Sink) -> None:
        """`identity`: the same for a command that is asked for again."""
        super().__init__(inner)
        self._identity, self._number = identity, 0
        self._publications, self.call, self.method = publications, call, method
        self._messages: deque[tuple[bytes, Sequence[Header]]] = deque()
        """The first of them is being published."""
        self._end: tuple[int, str, Sequence[Header]] | None = None
        self._begun = self._over = False

    def next_id(self) -> str:
        """The id of the next event."""
        self._number += 1
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{self._identity}\n{self._number}"))

    def message(self, payload: bytes, headers: Sequence[Header]) -> None:
        """One answer."""
        self._messages.append((payload, headers))
        self.waiting += len(payload) + 1
        if len(self._messages) == 1:
            self._publications.publish(self, payload, headers)

    def finish(self, status: int, text: str, trailers: Sequence[Header]) -> None:
        """The end; the caller gets it after the last answer."""
        if self._messages:
            self._end = status, text, trailers
        elif not self._over:
            self._over = True
            self.inner.finish(status, text, trailers)

    def published(self, problem: str) -> None:
        """The first answer is published: its caller gets it."""
        if self._over:
            return
        if problem:
            self._over = True
            self._publications.ended(self, problem)
            text = f"{self.method.path}: was executed, but its answer could not be published to topic {self.method.out!r}: {problem}"
            self.inner.finish(Status.UNAVAILABLE, text, ())
            return
        self._publications.ended(self, "")
        payload, headers = self._messages.popleft()
        self.waiting -= len(payload) + 1
        self.inner.message(payload, () if self._begun else carried(headers))
        self._begun = True
        if self._messages:
            self._publications.publish(self, *self._messages[0])
        elif self._end is not None:
            self._over = True
            self.inner.finish(*self._end)
        else:
            self._publications.emptied(self.call)
