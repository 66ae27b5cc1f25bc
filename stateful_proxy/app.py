"""Wires one proxy process: discovery and journal first, then the ports, then membership; and its end in the opposite order.

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
from cloudstate_core.pb.cloudstate_knative.v1 import coordination_pb2 as pb
from cloudstate_core.transport import api
from cloudstate_core.transport.api import Event, ListenOptions, Status
from stateful_proxy.absence import Absence
from stateful_proxy.actions import Actions
from stateful_proxy.admin import Admin
from stateful_proxy.callers import Callers
from stateful_proxy.commands import Commands
from stateful_proxy.coordinator import Coordinator
from stateful_proxy.crdt.crdts import CrdtLimits, Crdts
from stateful_proxy.crdt.dialects import dialect_of
from stateful_proxy.crdt.replication import Replication
from stateful_proxy.crdt.surroundings import InFlight, Surroundings
from stateful_proxy.discovery import Discovery
from stateful_proxy.dispatch import Dispatch, listen_options
from stateful_proxy.entities import Entities, EntityLimits
from stateful_proxy.eventing.event_log import EventLogs
from stateful_proxy.eventing.subscriptions import event_log_subscriptions
from stateful_proxy.follow_ups import FollowUps
from stateful_proxy.health import Health
from stateful_proxy.journal_batch import JournalBatch
from stateful_proxy.journal_probe import JournalProbe
from stateful_proxy.kinds import kinds_of
from stateful_proxy.libraries import quirks_of
from stateful_proxy.metadata import Chosen
from stateful_proxy.ownership import Ownership
from stateful_proxy.peers import Peers
from stateful_proxy.service import ServiceModel
from stateful_proxy.settings import Settings

log = logging.getLogger(__name__)

LATE = 3.0
"""Seconds after which a proxy that is not ready says so in its log."""
TICK = 1.0
"""Seconds between heartbeats and looks for idle entities."""
GRACE = 10.0
"""Seconds from the order to stop to the end of the process."""
HANDOVER_LIMIT = 7.0
"""Seconds of those in which the leader may move the shards away; then they are sealed without a successor."""


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
        self._batch: JournalBatch | None = None
        self._entities: Entities | None = None
        self._actions: Actions | None = None
        self._commands: Commands | None = None
        self._crdts: Crdts | None = None
        self._callers = Callers(self._transport)
        self._absence = Absence(self._transport, self._callers)
        self._dispatch: Dispatch | None = None
        self._event_logs: EventLogs | None = None
        self._coordinator: Coordinator | None = None
        self._ownership: Ownership | None = None
        self._admin = Admin(self._transport, self.problem, self.metrics, {"/shards": self.shards, "/entities": self.entities})
        self._health: Health | None = None
        self._draining = self._begun = False
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
        self._discovery = Discovery(self._transport, self._function, settings.function, _version(), *told, settings.oldest_protocol)
        self._begun = True
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
        if self._entities is not None and self._health is not None and self._batch is not None:
            self._entities.closed = self._discovery.problem
            self._health.changed()
            self._absence.changed(self._discovery.problem)
            self._batch.flush()

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
        if self._model is None or self._journal is None or self._dispatch is not None or self._draining or self.failure:
            return
        settings, model = self.settings, self._model
        batch = self._batch = JournalBatch(self._transport, self._journal)
        member = self._member if settings.coordinator else ""
        ownership = self._ownership = Ownership(self._transport, batch, member, settings.shards, self._owned_changed)
        quirks = quirks_of(model.library)
        limits = EntityLimits(idle=settings.passivation, streams=settings.function_streams or quirks.streams)
        report = self._discovery.report_error
        callers, transport = self._callers, self._transport
        follow_ups = FollowUps(transport, callers, model.methods, report, batch.flush)
        entities = self._entities = Entities(transport, self._function, batch, ownership, limits, callers, follow_ups, report, kinds_of(quirks))
        self._health = Health(transport, model.services, lambda: not self.problem())
        peers = Peers(transport, member) if member else None
        try:
            data = transport.listen(settings.host, settings.data_port, listen_options(model))
            peer = transport.listen(settings.host, settings.peer_port, listen_options(model, peer=True)) if peers is not None else 0
        except OSError as error:
            self._fail(str(error))
            return
        actions = self._actions = Actions(transport, self._function, callers, follow_ups, report)
        commands = self._commands = Commands(transport, callers, ownership, entities, peers, self._absence, batch.flush)
        replication = Replication(transport, peers, self._member)
        in_flight, dialect = InFlight(time.monotonic()), dialect_of(model.protocol, quirks)
        around = Surroundings(
            transport, self._function, callers, follow_ups, replication, self._absence, report, _wall_clock, in_flight, dialect, batch.flush
        )
        crdts = self._crdts = Crdts(around, batch, settings.shards, CrdtLimits(idle=settings.passivation))
        chosen = Chosen(settings.entity_headers)
        self._dispatch = Dispatch(transport, model, callers, commands, actions, crdts, ownership, self._health, chosen)
        follow_ups.invoke = self._dispatch.invoke
        self._consume_events(model, self._dispatch, batch, ownership, entities)
        if peers is not None:
            ownership.announce = peers.announce
            probe = JournalProbe(batch, ownership)

            def concurrency(now: float) -> float:
                return actions.concurrency(now) + crdts.concurrency(now)

            self._coordinator = Coordinator(
                self._transport, settings.coordinator, self._hello(data, peer), ownership, entities, concurrency, peers, probe, self._map_changed
            )
            self._coordinator.start()
        self._transport.after(TICK, self._tick)

    def _consume_events(self, model: ServiceModel, dispatch: Dispatch, batch: JournalBatch, ownership: Ownership, entities: Entities) -> None:
        subscriptions = event_log_subscriptions(model)
        logs = EventLogs(self._transport, batch, self._callers, dispatch.invoke, ownership, entities, subscriptions)
        ownership.tenants = self._event_logs = logs
        if subscriptions:
            entities.appended = logs.appended
            if not self.settings.coordinator:  # events may wait in shards that no command has called for yet
                for shard in range(ownership.shard_count):
                    ownership.admit(shard)
                batch.flush()

    def _hello(self, data_port: int, peer_port: int) -> pb.Hello:
        assert self._journal is not None
        assert self._model is not None
        settings = self.settings
        host = settings.reachable_host
        member = pb.Member(
            member_id=self._member,
            pod=settings.pod,
            revision=settings.revision,
            data_address=f"{host}:{settings.advertise_port or data_port}",
            peer_address=f"{host}:{peer_port}",
        )
        return pb.Hello(
            service=settings.service,
            member=member,
            journal_id=self._journal.layout.journal_id,
            shard_count=settings.shards,
            methods=self._model.method_table(),
        )

    def _map_changed(self) -> None:
        assert self._health is not None
        assert self._crdts is not None
        self._health.changed()
        self._crdts.members_changed()

    def _owned_changed(self) -> None:
        if self._event_logs is not None and self._ownership is not None:
            self._event_logs.owned(self._ownership.owned)
        if self._coordinator is not None:
            self._coordinator.beat_soon()

    def _tick(self) -> None:
        assert self._entities is not None
        assert self._batch is not None
        now = time.monotonic()
        self._transport.after(TICK, self._tick)
        self._entities.passivate(now)
        if self._crdts is not None:
            self._crdts.tick(now)
        if self._event_logs is not None:
            self._event_logs.tick(now)
        if self._coordinator is not None:
            self._coordinator.tick(now)
        self._batch.flush()

    # Events -------------------------------------------------------------------------------------------------------------

    def _on_batch(self, events: list[Event]) -> None:
        entities, dispatch = self._entities, self._dispatch
        for event in events:
            kind = event[0]
            try:
                if dispatch is not None and entities is not None:
                    if kind == api.CALL:
                        dispatch.on_event(event)
                        continue
                    if kind == api.CALL_CANCELLED:
                        self._callers.detach(event[1])
                    if (kind == api.STREAM_MESSAGE or kind == api.STREAM_CLOSED or kind == api.CALL_CANCELLED) and entities.on_event(event):
                        if kind == api.STREAM_CLOSED:
                            self._discovery.again(lost=event[3][3] or event[3][0] == Status.UNAVAILABLE)
                        continue
                self._rare(event)
            except Exception:
                self._survive(event)
        if self._batch is not None:
            self._batch.flush()

    def _survive(self, event: Event) -> None:
        """A mistake of ours costs one call, not the rest of the batch."""
        self.errors += 1
        log.exception("an event of kind %d could not be handled", event[0])
        if event[0] == api.CALL:
            self._transport.finish(event[1], Status.INTERNAL, "the proxy made a mistake; its log says more")

    def _rare(self, event: Event) -> None:
        """Events off the innermost path."""
        kind = event[0]
        if kind == api.HTTP and not event[3][2]:
            self._admin.on_event(event)
        elif kind in (api.STREAM_MESSAGE, api.STREAM_CLOSED):
            if any(room.on_event(event) for room in (self._actions, self._crdts) if room is not None):
                if kind == api.STREAM_CLOSED and (event[3][3] or event[3][0] == Status.UNAVAILABLE):
                    self._discovery.again(lost=True)
                return
            rooms = (self._commands, self._coordinator, self._discovery)
            handlers = (self._on_journal_event, *(room.on_event for room in rooms if room is not None))
            any(handler(event) for handler in handlers if handler)
        elif self._dispatch is not None:
            self._dispatch.on_event(event)

    # Views --------------------------------------------------------------------------------------------------------------

    def problem(self) -> str:
        """Why the proxy is not ready; '' when it is."""
        if self.failure or self._draining:
            return self.failure or "draining"
        if not self._begun:
            return "starting"
        if self._model is None:
            return self._discovery.problem
        if self._journal is None:
            return f"journal {shown(self.settings.journal)}: is not open yet"
        if self._discovery.problem:
            return self._discovery.problem
        if self._coordinator is not None and not self._coordinator.joined:
            return self._coordinator.problem
        return "" if self._dispatch is not None else "starting"

    def metrics(self) -> dict[str, float]:
        """Figures for the metrics page."""
        entities, ownership, commands, actions = self._entities, self._ownership, self._commands, self._actions
        crdts = self._crdts
        if entities is None or ownership is None or commands is None or actions is None or crdts is None:
            return {"cloudstate_ready": 0}
        return {
            "cloudstate_ready": float(not self.problem()),
            "cloudstate_entities_active": entities.active,
            "cloudstate_entities_passivated_total": entities.passivated,
            "cloudstate_commands_total": entities.commands,
            "cloudstate_action_calls_total": actions.calls,
            "cloudstate_crdts_active": crdts.active,
            "cloudstate_crdt_commands_total": crdts.commands,
            "cloudstate_crdt_pushes_total": crdts.pushed,
            "cloudstate_commands_waiting": self._absence.waiting,
            "cloudstate_events_handled_total": self._event_logs.handled if self._event_logs is not None else 0,
            "cloudstate_event_failures_total": self._event_logs.failed if self._event_logs is not None else 0,
            "cloudstate_journal_fenced_total": entities.fenced,
            "cloudstate_journal_regressed_total": entities.regressed,
            "cloudstate_shards_owned": len(ownership.owned),
            "cloudstate_shard_claims_total": ownership.claims,
            "cloudstate_shard_handoffs_total": ownership.handoffs,
            "cloudstate_shard_losses_total": ownership.losses,
            "cloudstate_calls_forwarded_total": commands.forwarded,
            "cloudstate_calls_refused_total": commands.refused,
            "cloudstate_function_concurrency": entities.function_concurrency,
            "cloudstate_errors_total": self.errors,
        }

    def shards(self) -> dict[str, object]:
        """Owned shards and their epochs."""
        if self._ownership is None:
            return {"owned": {}}
        owned = {str(shard): token.epoch for shard, token in self._ownership.owned.items()}
        return {"member": self._member, "generation": self._ownership.generation, "owned": owned}

    def entities(self) -> dict[str, object]:
        """How many entities there are in memory, and what they did."""
        if self._entities is None:
            return {"active": 0}
        return {"active": self._entities.active, "passivated": self._entities.passivated, "commands": self._entities.commands}

    # The end ------------------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """From any thread: hand over every shard, then end calls and set `ended`."""
        self._transport.post(self._drain)

    def _drain(self, at_once: bool = False) -> None:
        """`at_once`: take no further command, and do not wait for the leader to choose successors."""
        if self._draining:
            return
        self._draining = True
        self._absence.changed(self._absence.problem, final=True)
        deadline = time.monotonic() + GRACE
        if self._health is not None:
            self._health.close()
        if self._coordinator is None or self._ownership is None:
            self._close(deadline)
            return
        self._coordinator.draining = True
        self._ownership.leave()
        if at_once:
            self._ownership.drain_all()
        self._coordinator.beat()
        self._transport.after(HANDOVER_LIMIT, self._give_up)
        self._await_handover(deadline)

    def _give_up(self) -> None:
        """The leader did not move these in time: seal them without a successor."""
        assert self._ownership is not None
        assert self._batch is not None
        self._ownership.drain_all()
        self._batch.flush()

    def _await_handover(self, deadline: float) -> None:
        assert self._ownership is not None
        if self._ownership.settled or time.monotonic() >= deadline - 1.0:
            self._close(deadline)
        else:
            self._transport.after(0.02, lambda: self._await_handover(deadline))

    def _close(self, deadline: float) -> None:
        """Replicated entities leave; then what has been passed on to other proxies, or is at the function still, may end."""
        if self._event_logs is not None:
            self._event_logs.stop()
        closing = False

        def close() -> None:
            nonlocal closing
            if not closing:
                closing = True
                self._transport.drain(max(0.5, deadline - time.monotonic()), self.ended.set)

        if self._crdts is not None and self._batch is not None:
            self._crdts.leave(close)
            self._batch.flush()
        self._transport.after(0.0 if self._crdts is None else max(0.0, deadline - time.monotonic() - 1.0), close)

    def stop(self) -> None:
        """Close journal and transport."""
        if self._journal is not None:
            self._journal.close()
        self._transport.stop()
        self._transport.join()


def _wall_clock() -> int:
    return time.time_ns() // 1_000_000


def _version() -> str:
    try:
        return metadata.version("cloudstate-knative")
    except metadata.PackageNotFoundError:
        return "0"
