"""Wires one activator process: the front door, the stream to the leader, the admin port, and its end."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Sequence

from activator.admin import Admin
from activator.coordinator import LeaderStream
from activator.request import LISTEN, LISTEN_HTTP
from activator.router import Router
from activator.routes import RouteTable
from activator.settings import Settings
from cloudstate_core import transport as transports
from cloudstate_core.pb.cloudstate_knative.v1 import coordination_pb2 as pb
from cloudstate_core.transport import api
from cloudstate_core.transport.api import Event, ListenOptions, Status

log = logging.getLogger(__name__)

EXPIRE_EVERY = 0.25
MISTAKE = "the activator made a mistake; its log says more"
ADMIN_LISTEN = ListenOptions(http_only=True, pick=("user-agent",))
"""Told apart from the front door by the number of its picked headers."""


class Activator:
    """One activator. `ended` is set once a drain is over."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.ended = threading.Event()
        self.failure = ""
        self.port = self.http_port = self.admin_port = 0
        """The bound ports, once started."""
        self._transport = transports.create(settings.transport)
        self._table = RouteTable()
        self._router = Router(
            self._transport,
            self._table,
            settings.queue,
            settings.hold,
            lambda stats: self._leader.send([stats]),
            time.monotonic,
            lambda: self._admin.problem,
        )
        self._leader = LeaderStream(
            self._transport,
            settings.coordinator,
            f"activator-{secrets.token_hex(4)}",
            self._router.statistics,
            self._router.present,
            self._routes,
        )
        self._admin = Admin(self._table, self._router, self._leader)

    def start(self) -> None:
        """Bind the ports and begin. OSError when one is taken."""
        self._transport.start(self._on_batch)
        self.admin_port = self._transport.listen(self.settings.host, self.settings.admin_port, ADMIN_LISTEN)
        self._transport.post(self._begin)
        self.port = self._transport.listen(self.settings.host, self.settings.port, LISTEN)
        if self.settings.http_port is not None:
            self.http_port = self._transport.listen(self.settings.host, self.settings.http_port, LISTEN_HTTP)

    def _begin(self) -> None:
        self._leader.start()
        self._transport.after(EXPIRE_EVERY, self._expire)

    def _on_batch(self, events: list[Event]) -> None:
        for event in events:
            kind = event[0]
            try:
                if kind == api.HTTP and len(event[3][2]) == len(ADMIN_LISTEN.pick):
                    self._transport.respond(event[1], *self._admin.answer(event[3][1]))
                elif kind in (api.STREAM_MESSAGE, api.STREAM_CLOSED):
                    self._leader.on_event(event)
                else:
                    self._router.on_event(event)
            except Exception:
                self._survive(event)

    def _survive(self, event: Event) -> None:
        """A mistake of ours costs one request, not the rest of the batch."""
        self._admin.errors += 1
        log.exception("an event of kind %d could not be handled", event[0])
        if event[0] == api.CALL:
            self._transport.finish(event[1], Status.INTERNAL, MISTAKE)
        elif event[0] == api.HTTP:
            self._transport.respond(event[1], 500, [("content-type", b"text/plain")], MISTAKE.encode())

    def _routes(self, routes: Sequence[pb.ServiceRoute]) -> None:
        for service in self._table.apply(routes):
            self._router.changed(service)

    def _expire(self) -> None:
        self._transport.after(EXPIRE_EVERY, self._expire)
        self._router.expire(time.monotonic())

    def drain(self) -> None:
        """From any thread: be ready no more, go on for a while, then accept no more, let requests end, and set `ended`."""
        self._transport.post(self._drain)

    def _drain(self) -> None:
        if not self._admin.draining:
            self._admin.draining = True
            left = self.settings.drain - self.settings.linger
            self._transport.after(self.settings.linger, lambda: self._transport.drain(left, self.ended.set))

    def stop(self) -> None:
        """Close everything."""
        self._transport.stop()
        self._transport.join()
