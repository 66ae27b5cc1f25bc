"""Events that come as HTTP CloudEvents: a trigger, a source or any other sender posts them, and methods that subscribe to their topic get them.

`POST /topics/TOPIC` names the topic. `POST /` will do for a function all of whose subscriptions are to one topic, which is what a trigger sends
to a service that it names. Guarantees: the sender hears of success only when every consumer group has handled the event and what its methods
publish is published; else it hears an error, and is to send the event again. Entities execute an event that comes again once, by a command id
made of its source and id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import unquote

from cloudstate_core.transport.api import Header, Status
from stateful_proxy.callers import Callers
from stateful_proxy.eventing.cloud_events import CloudEvent, InvalidEvent, is_event, is_json, of_request
from stateful_proxy.eventing.payloads import Payload, metadata_of, payload_of
from stateful_proxy.eventing.subscriptions import Subscription
from stateful_proxy.invocation import Invocation, Invoke
from stateful_proxy.service import MethodInfo, ServiceModel
from stateful_proxy.transcoding.requests import BadRequest, message_of_json
from stateful_proxy.transcoding.responses import STATUS

PREFIX = "/topics/"
HANDLED, UNFIT = 204, 422

Respond = Callable[[int, str], None]
"""Answer a request: HTTP status and text."""


class Topics:
    """The topics that a function subscribes to."""

    def __init__(
        self, callers: Callers, invoke: Invoke, cancel: Callable[[int], object], model: ServiceModel, subscriptions: Sequence[Subscription]
    ) -> None:
        """`cancel` tells who executes a call that nobody waits for it."""
        self._callers, self._invoke, self._cancel, self._model = callers, invoke, cancel, model
        self._open: dict[int, _Deliveries] = {}
        """By the request that brought the event."""
        self._by_topic: dict[str, list[Subscription]] = {}
        for subscription in subscriptions:
            self._by_topic.setdefault(subscription.source, []).append(subscription)
        self.handled = self.failed = 0

    def wants(self, verb: str, path: str, headers: Mapping[str, str]) -> bool:
        """Whether a request is one of these; names of headers are lower-case."""
        return verb == "POST" and (path.startswith(PREFIX) or (path == "/" and is_event(headers)))

    def take(self, request: int, path: str, headers: Mapping[str, str], body: bytes, respond: Respond) -> None:
        """Give the event of a request to its consumers; `request`: its call."""
        topic, problem = self._topic(path)
        if problem:
            self._refuse(respond, 404, problem)
            return
        try:
            event = of_request(headers, body)
        except InvalidEvent as error:
            self._refuse(respond, 400, str(error))
            return
        chosen: list[_Chosen] = []
        for subscription in self._by_topic[topic]:
            try:
                found = self._choose(subscription, event)
            except BadRequest as error:
                self._refuse(respond, 400, str(error))
                return
            if found is None:
                self._refuse(respond, UNFIT, f"topic {topic}: {subscription.unfit(payload_of(event).type_url)}")
                return
            chosen.append(found)
        deliveries = _Deliveries(lambda status, text: self._done(request, respond, status, text))
        calls = [deliveries.add(self._callers) for _ in chosen]
        self._open[request] = deliveries
        for call, each in zip(calls, chosen, strict=True):
            self._deliver(call, each, event)

    def cancelled(self, request: int) -> bool:
        """The sender has gone, and will send the event again; False when it waits for none of these."""
        deliveries = self._open.pop(request, None)
        for call in list(deliveries.calls) if deliveries is not None else ():
            self._callers.detach(call)
            self._cancel(call)
        return deliveries is not None

    def _topic(self, path: str) -> tuple[str, str]:
        """The topic that a path means, and what is wrong with it."""
        known = f"this function takes events of {', '.join(sorted(self._by_topic)) or 'no topic'}"
        if path == "/":
            topics = list(self._by_topic)
            return (topics[0], "") if len(topics) == 1 else ("", f"/: no topic is named; {known}: post to {PREFIX}TOPIC")
        topic = unquote(path.removeprefix(PREFIX))
        return topic, "" if topic in self._by_topic else f"topic {topic!r}: {known}"

    def _choose(self, subscription: Subscription, event: CloudEvent) -> _Chosen | None:
        """The method of a consumer that takes an event, and what it gets; None: there is none. JSON that no method takes as such is read as the
        message that the event's type names. BadRequest when it is none."""
        payload = payload_of(event)
        if (method := subscription.method_for(payload.type_url)) is not None:
            return _Chosen(subscription, method, payload)
        method = subscription.methods.get(event.type)
        if method is None or not is_json(event.content_type):
            return None
        value = message_of_json(self._model.pool.FindMessageTypeByName(event.type), event.data)
        return _Chosen(subscription, method, Payload("", value))

    def _deliver(self, call: int, chosen: _Chosen, event: CloudEvent) -> None:
        method, payload = chosen.method, chosen.payload
        command_id = _command_id(chosen.subscription.consumer, event)
        invocation = Invocation(method, payload.value, metadata_of(event).SerializeToString(), command_id, type_url=payload.type_url)
        self._invoke(call, invocation)

    def _refuse(self, respond: Respond, status: int, text: str) -> None:
        self.failed += 1
        respond(status, text)

    def _done(self, request: int, respond: Respond, status: int, text: str) -> None:
        if self._open.pop(request, None) is None:
            return  # the sender has gone, and what was being published then is published now
        if status == Status.OK:
            self.handled += 1
            respond(HANDLED, "")
        else:
            self._refuse(respond, STATUS.get(status, 500), text)


@dataclass(frozen=True, slots=True)
class _Chosen:
    """What one consumer does with an event."""

    subscription: Subscription
    method: MethodInfo
    payload: Payload


class _Deliveries:
    """One event on its way to every consumer. `done` hears the first failure, or success, when the last delivery has ended."""

    def __init__(self, done: Callable[[int, str], None]) -> None:
        self._done = done
        self._status, self._text = int(Status.OK), ""
        self.calls: set[int] = set()
        """Of the deliveries that have not ended."""

    def add(self, callers: Callers) -> int:
        """The call of one more delivery."""
        delivery = _Delivery(self)
        delivery.call = callers.attach(delivery)
        self.calls.add(delivery.call)
        return delivery.call

    def ended(self, call: int, status: int, text: str) -> None:
        """One of them has ended."""
        self.calls.discard(call)
        if status != Status.OK and self._status == Status.OK:
            self._status, self._text = status, text
        if not self.calls:
            self._done(self._status, self._text)


class _Delivery:
    """Waits for the end of one delivery; what the method answers is nobody's concern here."""

    def __init__(self, deliveries: _Deliveries) -> None:
        self._deliveries, self.call = deliveries, 0

    def message(self, payload: bytes, headers: Sequence[Header]) -> None:
        """An answer of the method."""

    def finish(self, status: int, text: str, trailers: Sequence[Header]) -> None:
        """The method is done."""
        self._deliveries.ended(self.call, status, text)


def _command_id(consumer: str, event: CloudEvent) -> str:
    """The same whenever the event comes: source and id together are unique for distinct events."""
    parts = "\n".join((consumer, event.attributes["source"], event.attributes["id"]))
    return f"event-{hashlib.sha256(parts.encode()).hexdigest()[:32]}"
