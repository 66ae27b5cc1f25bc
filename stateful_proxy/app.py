"""Wires one proxy process: discovery and journal first, then everything that serves; and its end in the opposite order.

Everything below runs on the transport's callback thread. The data port opens only once the function's answer was found good and the journal
is open; the admin port is there from the start and says what is missing.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from importlib import metadata

from cloudstate_core import transport as transports
from cloudstate_core.journal.api import Journal, JournalError
from cloudstate_core.journal.opening import open_journal, shown
from cloudstate_core.transport import api
from cloudstate_core.transport.api import Event, ListenOptions, Status
from stateful_proxy.admin import Admin
from stateful_proxy.departure import Departure
from stateful_proxy.discovery import Discovery
from stateful_proxy.service import ServiceModel
from stateful_proxy.serving import Serving
from stateful_proxy.settings import Settings

log = logging.getLogger(__name__)

LATE = 3.0
"""Seconds after which a proxy that is not ready says so in its log."""
MISTAKE = "the proxy made a mistake; its log says more"
TICK = 1.0
"""Seconds between heartbeats and looks for idle entities."""


class Proxy:
    """One proxy. `ended` is set once a drain is over; `failure` says why the proxy cannot serve at all."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.ended = threading.Event()
        self.failure = ""
        self._transport = transports.create(settings.transport)
        self._member = f"{settings.pod}/{secrets.token_hex(4)}"
        self._model: ServiceModel | None = None
        self._journal: Journal | None = None
        self._on_journal_event: api.EventHandler | None = None
        self._discovery: Discovery | None = None
        self._serving: Serving | None = None
        self._admin = Admin(self._transport, self.problem, self.metrics, {"/shards": self.shards, "/entities": self.entities})
        self._draining = False
        self.errors = 0

    def start(self) -> None:
        """Bind the admin port and begin. OSError when a port is taken."""
        self._transport.start(self._on_batch)
        self._transport.listen(self.settings.host, self.settings.admin_port, ListenOptions(http_only=True))
        self._transport.post(self._begin)

    def _begin(self) -> None:
        settings = self.settings
        self._function = self._transport.connect(settings.function)
        told = (self._discovered, self._replaced, self._function_changed)
        rules = (settings.oldest_protocol, bool(settings.sink))
        self._discovery = Discovery(self._transport, self._function, settings.function, _version(), *told, *rules)
        self._discovery.start()
        self._transport.after(LATE, self._tell_late)
        self._on_journal_event = open_journal(
            settings.journal, settings.service, settings.shards, self._transport, self._journal_opened, settings.journal_password
        )

    def _discovered(self, model: ServiceModel) -> None:
        self._model = model
        self._serve_if_complete()

    def _replaced(self, reason: str) -> None:
        """The function is another one: give everything up and end, so that whoever runs this process starts it anew."""
        log.error("%s", reason)
        self.failure = reason
        self._drain(at_once=True)

    def _function_changed(self) -> None:
        if self._serving is not None and self._discovery is not None:
            self._serving.function_changed(self._discovery.problem)

    def _tell_late(self) -> None:
        if problem := self.problem():
            log.warning("not ready after %g s: %s", LATE, problem)

    def _journal_opened(self, result: Journal | JournalError) -> None:
        if isinstance(result, JournalError):
            self._fail(str(result))
            return
        self._journal = result
        self._serve_if_complete()

    def _fail(self, reason: str) -> None:
        log.error("%s", reason)
        self.failure = reason
        self.ended.set()

    def _serve_if_complete(self) -> None:
        """Both the function's model and the journal are there: build the rest and open the ports."""
        model, journal, discovery = self._model, self._journal, self._discovery
        if model is None or journal is None or discovery is None or self._serving is not None or self._draining or self.failure:
            return
        about = (self._function, discovery, model, journal, self._member, self.problem)
        try:
            self._serving = Serving(self.settings, self._transport, *about)
        except OSError as error:
            self._fail(str(error))
            return
        self._transport.after(TICK, self._tick)

    def _tick(self) -> None:
        assert self._serving is not None
        self._transport.after(TICK, self._tick)
        self._serving.tick(time.monotonic())

    # Events -------------------------------------------------------------------------------------------------------------

    def _on_batch(self, events: list[Event]) -> None:
        serving = self._serving
        for event in events:
            try:
                if serving is None or not serving.take(event):
                    self._other(event)
            except Exception:
                self._survive(event)
        if self._serving is not None:
            self._serving.batch.flush()

    def _survive(self, event: Event) -> None:
        """A mistake of ours costs one call, not the rest of the batch."""
        self.errors += 1
        log.exception("an event of kind %d could not be handled", event[0])
        if event[0] == api.CALL:
            self._transport.finish(event[1], Status.INTERNAL, MISTAKE)
        elif event[0] == api.HTTP:
            self._transport.respond(event[1], 500, [("content-type", b"text/plain")], MISTAKE.encode())

    def _other(self, event: Event) -> None:
        """Events of the admin port, the journal and discovery."""
        if event[0] == api.HTTP:
            self._admin.on_event(event)
        elif event[0] in (api.STREAM_MESSAGE, api.STREAM_CLOSED) and not (self._on_journal_event and self._on_journal_event(event)):
            assert self._discovery is not None
            self._discovery.on_event(event)

    # Views --------------------------------------------------------------------------------------------------------------

    def problem(self) -> str:
        """Why the proxy is not ready; '' when it is."""
        if self.failure or self._draining:
            return self.failure or "draining"
        if self._discovery is None:
            return "starting"
        if self._model is None:
            return self._discovery.problem
        if self._journal is None:
            return f"journal {shown(self.settings.journal)}: is not open yet"
        if self._discovery.problem:
            return self._discovery.problem
        return self._serving.problem if self._serving is not None else "starting"

    def metrics(self) -> dict[str, float]:
        """Figures for the metrics page."""
        found: dict[str, float] = {"cloudstate_ready": float(not self.problem()), "cloudstate_errors_total": self.errors}
        return found | (self._serving.metrics() if self._serving is not None else {})

    def shards(self) -> dict[str, object]:
        """Owned shards and their epochs."""
        if self._serving is None:
            return {"owned": {}}
        ownership = self._serving.ownership
        owned = {str(shard): token.epoch for shard, token in ownership.owned.items()}
        return {"member": self._member, "generation": ownership.generation, "owned": owned}

    def entities(self) -> dict[str, object]:
        """How many entities there are in memory, and what they did."""
        if self._serving is None:
            return {"active": 0}
        entities = self._serving.entities
        return {"active": entities.active, "passivated": entities.lives.passivated, "commands": entities.commands}

    # The end ------------------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """From any thread: hand over every shard, then end calls and set `ended`."""
        self._transport.post(self._drain)

    def _drain(self, at_once: bool = False) -> None:
        if not self._draining:
            self._draining = True
            Departure(self._transport, self._serving, self.ended.set).begin(at_once)

    def stop(self) -> None:
        """Close journal and transport."""
        if self._serving is not None:
            self._serving.close()
        if self._journal is not None:
            self._journal.close()
        self._transport.stop()
        self._transport.join()


def _version() -> str:
    try:
        return metadata.version("cloudstate-knative")
    except metadata.PackageNotFoundError:
        return "0"
