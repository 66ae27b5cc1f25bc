"""The rooms of a proxy that serves: everything that needs the function's model and an open journal, built together and at once.

Everything here runs on the transport's callback thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from cloudstate_core.journal.api import Journal
from cloudstate_core.pb.cloudstate_knative.v1 import coordination_pb2 as pb
from cloudstate_core.transport import api
from cloudstate_core.transport.api import Event, Status, Transport
from stateful_proxy.absence import Absence
from stateful_proxy.actions import Actions
from stateful_proxy.callers import Callers
from stateful_proxy.commands import Commands
from stateful_proxy.coordinator import Coordinator
from stateful_proxy.crdt.crdts import CrdtLimits, Crdts
from stateful_proxy.crdt.dialects import dialect_of
from stateful_proxy.crdt.replication import Replication
from stateful_proxy.crdt.surroundings import Surroundings
from stateful_proxy.discovery import Discovery
from stateful_proxy.dispatch import Dispatch, listen_options
from stateful_proxy.entities import Entities, EntityLimits
from stateful_proxy.eventing.event_log import EventLogs
from stateful_proxy.eventing.publication import Publications
from stateful_proxy.eventing.subscriptions import event_log_subscriptions, topic_subscriptions
from stateful_proxy.follow_ups import FollowUps
from stateful_proxy.health import Health
from stateful_proxy.in_flight import InFlight
from stateful_proxy.journal_batch import JournalBatch
from stateful_proxy.journal_probe import JournalProbe
from stateful_proxy.kinds import kinds_of
from stateful_proxy.libraries import quirks_of
from stateful_proxy.metadata import Chosen
from stateful_proxy.ownership import Ownership
from stateful_proxy.peers import Peers
from stateful_proxy.service import ServiceModel
from stateful_proxy.settings import Settings

if TYPE_CHECKING:
    from stateful_proxy.eventing.http_sink import HttpSink


class Serving:
    """All rooms. OSError when a port is taken."""

    def __init__(
        self,
        settings: Settings,
        transport: Transport,
        function: int,
        discovery: Discovery,
        model: ServiceModel,
        journal: Journal,
        member: str,
        problem: Callable[[], str],
    ) -> None:
        """`member`: this process's name among the service's proxies; `problem`: why the proxy is not ready, '' when it is."""
        self._transport, self._discovery, self._model = transport, discovery, model
        quirks, report = quirks_of(model.library), discovery.report_error
        among = member if settings.coordinator else ""
        self.batch = JournalBatch(transport, journal)
        self.callers = Callers(transport)
        self.absence = Absence(transport, self.callers)
        self.ownership = Ownership(transport, self.batch, among, settings.shards, self._owned_changed)
        self.follow_ups = FollowUps(transport, self.callers, model.methods, report, self.batch.flush)
        limits = EntityLimits(idle=settings.passivation, streams=settings.function_streams or quirks.streams)
        self.entities = Entities(
            transport, function, self.batch, self.ownership, limits, self.callers, self.follow_ups, report, kinds_of(quirks)
        )
        self.actions = Actions(transport, function, self.callers, self.follow_ups, report)
        self.health = Health(transport, model.services, lambda: not problem())
        peers = Peers(transport, among) if among else None
        around = Surroundings(
            transport,
            function,
            self.callers,
            self.follow_ups,
            Replication(transport, peers, member),
            self.absence,
            report,
            _wall_clock,
            InFlight(time.monotonic()),
            dialect_of(model.protocol, quirks),
            self.batch.flush,
        )
        self.crdts = Crdts(around, self.batch, settings.shards, CrdtLimits(idle=settings.passivation))
        self._sink = self._event_sink(settings)
        self.publications = Publications(self.callers, self._sink, lambda call: self.dispatch.cancel(call), self.actions.drained)
        self.commands = Commands(
            transport, self.callers, self.ownership, self.entities, peers, self.absence, self.publications, self.batch.flush
        )
        self.dispatch = Dispatch(
            transport,
            model,
            self.callers,
            self.commands,
            self.actions,
            self.crdts,
            self.ownership,
            self.health,
            Chosen(settings.entity_headers),
            self.publications,
            topic_subscriptions(model),
        )
        self.follow_ups.invoke, self.follow_ups.cancel = self.dispatch.invoke, self.dispatch.cancel
        self.event_logs = EventLogs(
            transport,
            self.batch,
            self.callers,
            self.dispatch.invoke,
            self.dispatch.cancel,
            self.ownership,
            self.entities,
            event_log_subscriptions(model),
        )
        self.ownership.tenants = self.event_logs
        self.coordinator: Coordinator | None = None
        self._open(settings, journal, member, peers)

    def _event_sink(self, settings: Settings) -> HttpSink | None:
        """Where answers are published to; None when no method publishes."""
        if not any(method.out for method in self._model.methods.values()):
            return None
        from stateful_proxy.eventing.http_sink import HttpSink  # its library is loaded only where something is published

        return HttpSink(settings.sink, settings.sink_extensions, settings.sink_certificates, self._published)

    def close(self) -> None:
        """After the end of the last call."""
        if self._sink is not None:
            self._sink.stop()

    def _published(self, tell: Callable[[], None]) -> None:
        """From any thread: a publication has ended."""

        def told() -> None:
            tell()
            self.batch.flush()

        self._transport.post(told)

    def _open(self, settings: Settings, journal: Journal, member: str, peers: Peers | None) -> None:
        """Open the ports; become a member, or take every shard."""
        data = self._transport.listen(settings.host, settings.data_port, listen_options(self._model))
        if peers is not None:
            peer = self._transport.listen(settings.host, settings.peer_port, listen_options(self._model, peer=True))
            self.ownership.announce = peers.announce
            hello = _hello(settings, self._model, journal, member, data, peer)
            self.coordinator = Coordinator(
                self._transport,
                settings.coordinator,
                hello,
                self.ownership,
                self.entities,
                lambda now: self.actions.concurrency(now) + self.crdts.concurrency(now),
                peers,
                JournalProbe(self.batch, self.ownership),
                self._map_changed,
            )
            self.coordinator.start()
        if self.event_logs.wanted:
            self.entities.lives.appended = self.event_logs.appended
            if peers is None:  # events may wait in shards that no command has called for yet
                for shard in range(self.ownership.shard_count):
                    self.ownership.admit(shard)
                self.batch.flush()

    # What happens -------------------------------------------------------------------------------------------------------

    def take(self, event: Event) -> bool:
        """Handle an event; False when it belongs to the journal, the admin port, or discovery."""
        kind = event[0]
        if kind == api.CALL:
            self.dispatch.call(event[1], event[2], event[3])
        elif kind == api.STREAM_MESSAGE:
            return self.entities.message(event[1], event[2]) or self._stream(event)
        elif kind == api.STREAM_CLOSED:
            if not self.entities.closed(event[1], event[3]):
                return self._stream(event)
            self._discovery.again(lost=_lost(event))
        elif kind == api.HTTP and not event[3][2]:
            return False  # of the admin port
        else:
            self.dispatch.on_event(event)
        return True

    def _stream(self, event: Event) -> bool:
        """Streams off the innermost path."""
        if self.actions.on_event(event) or self.crdts.on_event(event):
            if event[0] == api.STREAM_CLOSED and _lost(event):
                self._discovery.again(lost=True)
            return True
        return self.commands.on_event(event) or (self.coordinator is not None and self.coordinator.on_event(event))

    def tick(self, now: float) -> None:
        """To be called about once a second."""
        self.entities.passivate(now)
        self.crdts.tick(now)
        self.event_logs.tick(now)
        if self.coordinator is not None:
            self.coordinator.tick(now)
        self.batch.flush()

    def function_changed(self, problem: str) -> None:
        """The function has gone, with why, or is back."""
        self.entities.lives.closed = problem
        self.health.changed()
        self.absence.changed(problem)
        self.batch.flush()

    def _map_changed(self) -> None:
        self.health.changed()
        self.crdts.members_changed()

    def _owned_changed(self) -> None:
        self.event_logs.owned(self.ownership.owned)
        if self.coordinator is not None:
            self.coordinator.beat_soon()

    # Views --------------------------------------------------------------------------------------------------------------

    @property
    def problem(self) -> str:
        """Why this proxy is no member yet; '' when it is, or needs not be."""
        return self.coordinator.problem if self.coordinator is not None and not self.coordinator.joined else ""

    def metrics(self) -> dict[str, float]:
        """Figures for the metrics page."""
        entities, crdts, ownership, commands = self.entities, self.crdts, self.ownership, self.commands
        return {
            "cloudstate_entities_active": entities.active,
            "cloudstate_entities_passivated_total": entities.lives.passivated,
            "cloudstate_commands_total": entities.commands,
            "cloudstate_commands_waiting": self.absence.waiting,
            "cloudstate_action_calls_total": self.actions.calls,
            "cloudstate_crdts_active": crdts.active,
            "cloudstate_crdt_commands_total": crdts.commands,
            "cloudstate_crdt_pushes_total": crdts.pushed,
            "cloudstate_events_handled_total": self.event_logs.handled,
            "cloudstate_event_failures_total": self.event_logs.failed,
            "cloudstate_topic_events_handled_total": self.dispatch.topics.handled,
            "cloudstate_topic_events_failed_total": self.dispatch.topics.failed,
            "cloudstate_answers_published_total": self.publications.published,
            "cloudstate_publication_failures_total": self.publications.failed,
            "cloudstate_journal_fenced_total": entities.lives.fenced,
            "cloudstate_journal_regressed_total": entities.regressed,
            "cloudstate_shards_owned": len(ownership.owned),
            "cloudstate_shard_claims_total": ownership.claims,
            "cloudstate_shard_handoffs_total": ownership.handoffs,
            "cloudstate_shard_losses_total": ownership.losses,
            "cloudstate_calls_forwarded_total": commands.forwarded,
            "cloudstate_calls_refused_total": commands.refused,
            "cloudstate_calls_abandoned_total": self.dispatch.abandoned,
            "cloudstate_function_concurrency": entities.function_concurrency,
        }


def _lost(event: Event) -> bool:
    """Has a stream ended because the function cannot be reached?"""
    status, _, _, refused = event[3]
    return bool(refused or status == Status.UNAVAILABLE)


def _hello(settings: Settings, model: ServiceModel, journal: Journal, member: str, data_port: int, peer_port: int) -> pb.Hello:
    host = settings.reachable_host
    return pb.Hello(
        service=settings.service,
        member=pb.Member(
            member_id=member,
            pod=settings.pod,
            revision=settings.revision,
            data_address=f"{host}:{settings.advertise_port or data_port}",
            peer_address=f"{host}:{peer_port}",
        ),
        journal_id=journal.layout.journal_id,
        shard_count=settings.shards,
        methods=model.method_table(),
    )


def _wall_clock() -> int:
    return time.time_ns() // 1_000_000
