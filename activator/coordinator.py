"""The activator's stream to the leader: statistics go out, routes come in.

While the leader is away the last routes stay in force; the stream is opened again with a growing delay, on a new connection since another
may lead now behind the same name, and begins with what is in flight, so that calls which wait at zero are heard of by whoever leads. A leader
that has acknowledged messages and falls silent is given up, and so is one that never says anything: its machine may have gone without a word,
or its process stand still while the machine still takes connections.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from google.protobuf.message import DecodeError

from cloudstate_core.pb.cloudstate_knative.v1 import coordination_pb2 as pb
from cloudstate_core.transport import api
from cloudstate_core.transport.api import Event, Transport

log = logging.getLogger(__name__)

ROUTE = "/cloudstate_knative.v1.CoordinationService/Route"
REPORT_EVERY = 1.0
"""Seconds between statistics."""
SILENCE = 5
"""Messages in a row that a leader may leave without an acknowledgement."""
RETRY_FIRST, RETRY_LAST = 0.05, 2.0
Statistics = Callable[[], Sequence[pb.RevisionStats]]


class LeaderStream:
    """One stream at a time to `target`. `statistics` = since the last time, `present` = now; `on_routes` gets what the leader sends."""

    def __init__(
        self,
        transport: Transport,
        target: str,
        name: str,
        statistics: Statistics,
        present: Statistics,
        on_routes: Callable[[Sequence[pb.ServiceRoute]], None],
    ) -> None:
        self._transport, self._target, self._name = transport, target, name
        self._statistics, self._present, self._on_routes = statistics, present, on_routes
        self._upstream = self._stream = 0
        self._retry = RETRY_FIRST
        self._unanswered, self._acknowledges = 0, False
        self.connected = self.heard = False
        """The leader has spoken on the present stream; on any."""
        self.lost = 0
        """Streams that ended."""

    def start(self) -> None:
        """Connect and report from now on. On the callback thread."""
        self._connect()
        self._transport.after(REPORT_EVERY, self._tick)

    def _connect(self) -> None:
        if self._upstream:
            self._transport.disconnect(self._upstream)
        self._upstream = self._transport.connect(self._target)
        self._unanswered, self._acknowledges = 0, False
        self._stream = self._transport.open(self._upstream, ROUTE)
        self.send(self._present())

    def send(self, stats: Sequence[pb.RevisionStats]) -> None:
        """Tell statistics at once."""
        self._transport.send(self._stream, pb.RouteRequest(activator_id=self._name, stats=stats).SerializeToString())

    def _tick(self) -> None:
        self.send(self._statistics())
        self._unanswered += 1
        if self._unanswered > SILENCE and (self._acknowledges or not self.connected):
            self._unanswered, self._acknowledges = 0, False
            self._transport.reset(self._stream)
        self._transport.after(REPORT_EVERY, self._tick)

    def on_event(self, event: Event) -> None:
        """Handle STREAM_MESSAGE and STREAM_CLOSED; those of earlier streams are ignored."""
        kind, stream, data, detail = event
        if stream != self._stream:
            return
        if kind == api.STREAM_CLOSED:
            log.info("the leader at %s is away: %s", self._target, detail[1])
            self.connected, self.lost = False, self.lost + 1
            self._transport.after(self._retry, self._connect)
            self._retry = min(RETRY_LAST, self._retry * 2)
            return
        self._unanswered = 0
        self._acknowledges = self._acknowledges or (self.connected and not data)
        self.connected, self.heard, self._retry = True, True, RETRY_FIRST
        try:
            routes = pb.RouteResponse.FromString(data).services
        except DecodeError:
            log.error("the leader at %s sent %d bytes that are not a RouteResponse; the last routes stay in force", self._target, len(data))
            return
        self._on_routes(routes)
