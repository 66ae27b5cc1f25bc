"""Wires one activator process: the route stream to the leader, the front door, the admin port, and its end."""

from __future__ import annotations

import logging
import secrets
import threading
import time

from activator.router import LISTEN, Router, revision_stats, stats_of
from activator.routes import RouteTable, Service
from activator.settings import Settings
from activator.stats import Report
from cloudstate_core import transport as transports
from cloudstate_core.pb.cloudstate_knative.v1 import coordination_pb2 as pb
from cloudstate_core.transport import api
from cloudstate_core.transport.api import Event, ListenOptions

log = logging.getLogger(__name__)

ROUTE = "/cloudstate_knative.v1.CoordinationService/Route"
REPORT_EVERY = 1.0
EXPIRE_EVERY = 0.25
RETRY_FIRST, RETRY_LAST = 0.05, 2.0
TEXT = [("content-type", b"text/plain; charset=utf-8")]


class Activator:
    """One activator. `ended` is set once a drain is over."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.ended = threading.Event()
        self._transport = transports.create(settings.transport)
        self._table = RouteTable()
        self._router = Router(self._transport, self._table, settings.queue, settings.hold, self._report_now)
        self._id = f"activator-{secrets.token_hex(4)}"
        self._upstream = self._stream = 0
        self._retry = RETRY_FIRST
        self._connected = self._draining = False

    def start(self) -> None:
        """Bind both ports and begin. OSError when one is taken."""
        self._transport.start(self._on_batch)
        self._transport.listen(self.settings.host, self.settings.admin_port, ListenOptions(http_only=True, pick=("user-agent",)))
        self._transport.post(self._begin)
        self._transport.listen(self.settings.host, self.settings.port, LISTEN)

    def _begin(self) -> None:
        self._upstream = self._transport.connect(self.settings.coordinator)
        self._connect()
        self._transport.after(REPORT_EVERY, self._report)
        self._transport.after(EXPIRE_EVERY, self._expire)

    def _connect(self) -> None:
        self._stream = self._transport.open(self._upstream, ROUTE)
        self._transport.send(self._stream, pb.RouteRequest(activator_id=self._id).SerializeToString())

    def _on_batch(self, events: list[Event]) -> None:
        for event in events:
            kind = event[0]
            if kind == api.HTTP and len(event[3][2]) == 1:
                self._admin(event)
            elif kind in (api.STREAM_MESSAGE, api.STREAM_CLOSED):
                self._leader(event)
            else:
                self._router.on_event(event)

    # The leader ---------------------------------------------------------------------------------------------------------

    def _leader(self, event: Event) -> None:
        """Routes come in; when the stream ends the last ones stay in force."""
        kind, stream, data, _ = event
        if stream != self._stream:
            return
        if kind == api.STREAM_CLOSED:
            self._connected = False
            self._transport.after(self._retry, self._connect)
            self._retry = min(RETRY_LAST, self._retry * 2)
            return
        self._connected, self._retry = True, RETRY_FIRST
        for service in self._table.apply(pb.RouteResponse.FromString(data).services):
            self._router.changed(service)

    def _report(self) -> None:
        stats = stats_of(self._table, self._router, time.monotonic())
        if stats:
            self._transport.send(self._stream, pb.RouteRequest(activator_id=self._id, stats=stats).SerializeToString())
        self._transport.after(REPORT_EVERY, self._report)

    def _report_now(self, service: Service, report: Report) -> None:
        request = pb.RouteRequest(activator_id=self._id, stats=[revision_stats(service, report)])
        self._transport.send(self._stream, request.SerializeToString())

    def _expire(self) -> None:
        self._router.expire(time.monotonic())
        self._transport.after(EXPIRE_EVERY, self._expire)

    # Admin --------------------------------------------------------------------------------------------------------------

    def _admin(self, event: Event) -> None:
        _, call, _, (_, target, _) = event
        if target == "/alive":
            self._transport.respond(call, 200, TEXT, b"alive\n")
        elif target == "/ready":
            problem = "draining" if self._draining else "" if self._table.services else "no routes from the leader yet"
            self._transport.respond(call, 503 if problem else 200, TEXT, f"{problem or 'ready'}\n".encode())
        elif target == "/metrics":
            self._transport.respond(call, 200, TEXT, self._metrics())
        else:
            self._transport.respond(call, 404, TEXT, b"paths: /alive /ready /metrics\n")

    def _metrics(self) -> bytes:
        router = self._router
        in_flight = sum(reporter.in_flight for reporter in router.reporters.values())
        values = {
            "kn_revision_request_concurrency": in_flight,
            "kn_revision_request_queued": router.waiting,
            "kn_activator_stats_conn_reachable": int(self._connected),
            "cloudstate_activator_requests_total": router.requests,
            "cloudstate_activator_held_total": router.held_total,
            "cloudstate_activator_held_seconds_total": router.held_seconds,
            "cloudstate_activator_refused_total": router.refused,
            "cloudstate_activator_rejected_total": router.rejected,
        }
        return "".join(f"{name} {value:g}\n" for name, value in values.items()).encode()

    # The end ------------------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """From any thread: accept no more, let requests end, then set `ended`."""
        self._transport.post(self._drain)

    def _drain(self) -> None:
        if not self._draining:
            self._draining = True
            self._transport.drain(5.0, self.ended.set)

    def stop(self) -> None:
        """Close everything."""
        self._transport.stop()
        self._transport.join()
