"""What happens to each request at the front door: find the service, admit, route to the owner, hold what cannot be routed yet.

A call is tried again only where nothing can have happened (`REFUSED`), as long as it may be held. Every gRPC call carries a command id, so
that the journal recognises a repetition by whoever repeats it.
"""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from activator.admission import HoldQueue, PodSlots
from activator.routes import Destination, Hold, Reject, RouteTable, Service
from activator.stats import ConcurrencyReporter, Report
from cloudstate_core.entity_key import MalformedMessage
from cloudstate_core.pb.cloudstate_knative.v1 import coordination_pb2 as pb
from cloudstate_core.transport import api
from cloudstate_core.transport.api import Event, ListenOptions, Outcome, Status, Transport

COMMAND_ID = "cloudstate-command-id"
PICK = (":authority", "knative-serving-namespace", "knative-serving-revision", COMMAND_ID, "k-network-probe", "k-network-hash")
LISTEN = ListenOptions(peek=True, pick=PICK)
REMOVED = ("knative-serving-*", "cloudstate-hop")
RETRY = 0.03
"""Seconds until a refused call is routed again, if no change of the map comes first."""
TEXT = [("content-type", b"text/plain; charset=utf-8")]


@dataclass(slots=True, eq=False)
class Held:
    """A request on its way."""

    call: int
    service: Service
    path: str
    message: bytes
    command_id: bytes
    grpc: bool
    since: float
    member: str = ""


class Router:
    """The policy of one activator; `report` sends a revision's statistics at once."""

    def __init__(self, transport: Transport, table: RouteTable, queue: int, hold: float, report: Callable[[Service, Report], None]) -> None:
        self._transport, self._table, self._limit, self._hold_limit, self._report = transport, table, queue, hold, report
        self._calls: dict[int, Held] = {}
        self._queues: dict[str, HoldQueue[int]] = {}
        self._pods: dict[str, PodSlots[int]] = {}
        self._upstreams: dict[str, int] = {}
        self.reporters: dict[str, ConcurrencyReporter] = {}
        self._prefix = secrets.token_hex(6).encode() + b"-"
        self._numbers = itertools.count()
        self.requests = self.refused = self.held_total = self.rejected = 0
        self.held_seconds = 0.0

    @property
    def waiting(self) -> int:
        """Calls held now."""
        return sum(map(len, self._queues.values())) + sum(map(len, self._pods.values()))

    # Requests -----------------------------------------------------------------------------------------------------------

    def on_event(self, event: Event) -> None:
        """Handle a server event."""
        kind, call, data, detail = event
        if kind == api.CALL:
            self._begin(call, detail[0], data, detail[2], grpc=True)
        elif kind == api.FORWARDED:
            self._forwarded(call, detail[0], detail[1])
        elif kind == api.CALL_CANCELLED:
            self._end(call, discard=True)
        elif kind == api.HTTP:
            self._http(call, detail)

    def _http(self, call: int, detail: Any) -> None:
        """Probes of Knative are answered here; everything else goes to a pod."""
        _, target, picked = detail
        probe, wanted = picked[4], picked[5]
        if probe == b"probe":
            if wanted:
                self._transport.respond(call, 200, [("k-network-hash", wanted)], b"")
            else:
                self._transport.respond(call, 400, TEXT, b"K-Network-Hash must be set\n")
        elif probe:
            known = probe == b"activator"
            self._transport.respond(call, 200 if known else 400, TEXT, b"activator" if known else b"unexpected probe\n")
        else:
            self._begin(call, target, b"", picked, grpc=False)

    def _begin(self, call: int, path: str, message: bytes, picked: tuple[bytes, ...], grpc: bool) -> None:
        self.requests += 1
        service = self._table.find(picked[0].decode("latin-1"), picked[1].decode("latin-1"), picked[2].decode("latin-1"))
        if service is None:
            self._fail(call, grpc, Status.NOT_FOUND, 404, f"no service is known here for host {picked[0].decode('latin-1')!r}")
            return
        command_id = picked[3] or self._prefix + str(next(self._numbers)).encode()
        held = self._calls[call] = Held(call, service, path, message, command_id, grpc, time.monotonic())
        reporter = self.reporters.get(service.name)
        if reporter is None:
            reporter = self.reporters[service.name] = ConcurrencyReporter()
        if (early := reporter.begin(held.since)) is not None:
            self._report(service, early)
        self._route(held)

    def _route(self, held: Held) -> None:
        service = held.service
        try:
            if held.grpc:
                decision = service.decide(held.path, held.message, self._in_flight())
            else:
                decision = service.any_pod(self._in_flight())
        except MalformedMessage as error:
            decision = Reject(f"{held.path}: the request does not parse: {error}")
        if isinstance(decision, Destination):
            self._send(held, decision)
        elif isinstance(decision, Hold):
            self._hold(held)
        else:
            self.rejected += 1
            self._finish(held, Status.UNIMPLEMENTED if decision.unimplemented else Status.INVALID_ARGUMENT, 400, decision.reason)

    def _in_flight(self) -> dict[str, int]:
        return {member: slots.in_flight for member, slots in self._pods.items()}

    def _send(self, held: Held, to: Destination) -> None:
        slots = self._pods.setdefault(to.member, PodSlots())
        if not slots.take(held.service.concurrency):
            if len(slots) >= self._limit:
                self._full(held)
            else:
                slots.wait(held.call)
            return
        held.member = to.member
        upstream = self._upstreams.get(to.address)
        if upstream is None:
            upstream = self._upstreams[to.address] = self._transport.connect(to.address)
        waited = time.monotonic() - held.since
        if waited > 0.01:
            self.held_seconds += waited
        headers = [(COMMAND_ID, held.command_id), ("k-proxy-request", b"activator")]
        self._transport.forward(held.call, upstream, headers, REMOVED)

    # Waiting ------------------------------------------------------------------------------------------------------------

    def _hold(self, held: Held) -> None:
        queue = self._queues.setdefault(held.service.name, HoldQueue(self._limit))
        if not queue.push(held.call, held.since):
            self._full(held)
            return
        self.held_total += 1

    def _full(self, held: Held) -> None:
        text = f"{held.service.name}: {self._limit} requests wait already, no more are taken"
        self._finish(held, Status.RESOURCE_EXHAUSTED, 503, text)

    def changed(self, service: Service) -> None:
        """The routes of a service have changed: everything that waits for it tries again, oldest first."""
        calls = self._queues[service.name].release() if service.name in self._queues else []
        for member, slots in list(self._pods.items()):
            if member not in service.members and slots.in_flight == 0 and not len(slots):
                del self._pods[member]
            elif member in service.members or len(slots):
                calls += [c for c in slots.release() if c in self._calls]
        self._again(calls)

    def _again(self, calls: list[int]) -> None:
        for call in calls:
            if (held := self._calls.get(call)) is not None:
                self._route(held)

    def expire(self, now: float) -> None:
        """Give back what has been held too long."""
        for queue in self._queues.values():
            for call in queue.expired(now, self._hold_limit):
                if (held := self._calls.get(call)) is not None:
                    text = f"{held.service.name}: no pod could take the request within {self._hold_limit:g} s"
                    self._finish(held, Status.UNAVAILABLE, 503, text)

    # Ends ---------------------------------------------------------------------------------------------------------------

    def _forwarded(self, call: int, outcome: Outcome, text: str) -> None:
        held = self._calls.get(call)
        if held is None:
            return
        member, held.member = held.member, ""
        self._give_back(held.service, member)
        if outcome != Outcome.REFUSED:
            self._end(call)
            return
        self.refused += 1
        if time.monotonic() - held.since >= self._hold_limit:
            self._finish(held, Status.UNAVAILABLE, 503, f"{held.service.name}: no pod took the request: {text}")
        else:
            self._transport.after(RETRY, lambda: self._again([call]))

    def _give_back(self, service: Service, member: str) -> None:
        slots = self._pods.get(member)
        if slots is not None:
            self._again(slots.give_back(service.concurrency))

    def _end(self, call: int, discard: bool = False) -> None:
        held = self._calls.pop(call, None)
        if held is None:
            return
        self.reporters[held.service.name].end(time.monotonic())
        if held.member:
            self._give_back(held.service, held.member)
        elif discard:
            if (queue := self._queues.get(held.service.name)) is not None:
                queue.discard(call)
            for slots in self._pods.values():
                slots.discard(call)

    def _finish(self, held: Held, status: Status, http_status: int, text: str) -> None:
        self._fail(held.call, held.grpc, status, http_status, text)
        self._end(held.call)

    def _fail(self, call: int, grpc: bool, status: Status, http_status: int, text: str) -> None:
        if grpc:
            self._transport.finish(call, status, text)
        else:
            self._transport.respond(call, http_status, TEXT, text.encode() + b"\n")


def stats_of(table: RouteTable, router: Router, now: float) -> list[pb.RevisionStats]:
    """The periodic statistics of every service that was not idle."""
    found = []
    for name, reporter in router.reporters.items():
        if (report := reporter.report(now)) is not None:
            found.append(revision_stats(table.services[name], report))
    return found


def revision_stats(service: Service, report: Report) -> pb.RevisionStats:
    """One service's report as a message."""
    return pb.RevisionStats(service=service.name, revision=service.revision, concurrency=report.concurrency, requests=report.requests)
