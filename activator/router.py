"""What happens to each request at the front door: find the service, admit, route to the owner, hold what cannot be routed yet.

A call is tried again only where nothing can have happened (`REFUSED`): at once if somebody else may take it, else when the map changes or
after a growing delay, and for no longer than it may be held. Every command carries an id and a repetition is marked, so that the journal
recognises what was done already. A call counts until its last byte, and the transport ends it at its revision's timeout wherever it is.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable
from typing import Any

from activator import probes
from activator.admission import Desk, WaitQueue
from activator.request import REMOVED, Request, headers_of
from activator.routes import NO_REVISION, Decision, Destination, Hold, Peek, Reject, RouteTable, Service
from activator.stats import ConcurrencyReporter, Report
from cloudstate_core.entity_key import MalformedMessage
from cloudstate_core.pb.cloudstate_knative.v1 import coordination_pb2 as pb
from cloudstate_core.transport import api
from cloudstate_core.transport.api import Event, Outcome, Status, Transport

RETRY_FIRST, RETRY_LAST = 0.03, 1.0
"""Seconds until a member that has refused a call may be asked again, if no change of the map helps before; doubled each time."""
RevisionName = tuple[str, str]
"""Name of a service and of one of its revisions."""


class Router:
    """The policy of one activator. `clock` gives monotonic seconds; `report` sends a revision's statistics at once; `problem` says why the
    activator is not ready, '' when it is."""

    def __init__(
        self,
        transport: Transport,
        table: RouteTable,
        queue: int,
        hold: float,
        report: Callable[[pb.RevisionStats], None],
        clock: Callable[[], float],
        problem: Callable[[], str],
    ) -> None:
        self._transport, self._table, self._queue, self._hold_limit, self._report, self._clock = transport, table, queue, hold, report, clock
        self._problem = problem
        self._calls: dict[int, Request] = {}
        self._upstreams: dict[str, int] = {}
        self.desks: dict[str, Desk[int]] = {}
        self.reporters: dict[RevisionName, ConcurrencyReporter] = {}
        self._prefix = secrets.token_hex(6).encode() + b"-"
        self._numbers = itertools.count()
        self.requests = self.refused = self.held = self.rejected = self.cold_starts = 0
        self.held_seconds = 0.0

    # Requests -----------------------------------------------------------------------------------------------------------

    def on_event(self, event: Event) -> None:
        """Handle a server event."""
        kind, call, data, detail = event
        if kind == api.CALL:
            self._begin(call, detail[0], None if detail[1] is None else data, detail[2], grpc=True)
        elif kind == api.FORWARDED:
            self._forwarded(call, detail[0], detail[1])
        elif kind == api.CALL_CANCELLED:
            if (request := self._calls.get(call)) is not None:
                self._end(request)
        elif kind == api.HTTP:
            self._http(call, detail)
        elif kind == api.CALL_MESSAGE and (request := self._calls.get(call)) is not None:
            request.message = data
            self._route(request)

    def _http(self, call: int, detail: Any) -> None:
        """Probes are answered here; everything else goes to a pod."""
        _, target, picked = detail
        user_agent, probe, wanted = picked[-3:]
        if (answer := probes.answer(user_agent, probe, wanted, self._problem())) is not None:
            self._transport.respond(call, *answer)
        else:
            self._begin(call, target, b"", picked, grpc=False)

    def _begin(self, call: int, path: str, message: bytes | None, picked: tuple[bytes, ...], grpc: bool) -> None:
        self.requests += 1
        authority, namespace, revision = picked[0].decode("latin-1"), picked[1].decode("latin-1"), picked[2].decode("latin-1")
        found = self._table.find(authority, namespace, revision)
        if found is None:
            self._nowhere(call, grpc, f"revision {namespace}/{revision}" if revision else f"host {authority!r}")
            return
        service, revision = found
        command = b"" if service.plain else picked[3] or self._prefix + str(next(self._numbers)).encode()
        request = Request(call, service, revision, path, message, headers_of(picked, command), grpc, self._clock())
        decision = self._decide(request)
        self._calls[call] = request
        if isinstance(decision, Hold) and service.at_zero(revision):
            self.cold_starts += 1
        if not isinstance(decision, Reject):  # what cannot be served wakes nobody
            self._count(request)
            if timeout := service.revisions.get(revision, NO_REVISION).timeout:
                self._transport.limit(call, timeout)
        self._act(request, decision)

    def _nowhere(self, call: int, grpc: bool, what: str) -> None:
        self.rejected += 1
        if self._table.told:
            self._fail(call, grpc, Status.UNIMPLEMENTED, 404, f"{what}: no service is known here by that name")
        else:
            self._fail(call, grpc, Status.UNAVAILABLE, 503, "no routes have come from the leader yet")

    def _count(self, request: Request) -> None:
        request.counted = True
        name = (request.service.name, request.revision)
        reporter = self.reporters.get(name)
        if reporter is None:
            reporter = self.reporters[name] = ConcurrencyReporter()
        if (early := reporter.begin(request.began)) is not None:
            self._report(_message(name, early, 0))

    # Routing ------------------------------------------------------------------------------------------------------------

    def _desk(self, service: Service) -> Desk[int]:
        found = self.desks.get(service.name)
        if found is None:
            found = self.desks[service.name] = Desk(self._queue)
        return found

    def _decide(self, request: Request) -> Decision:
        service, load = request.service, self._desk(request.service).load
        if not request.grpc:
            return service.any_pod(request.revision, load, request.refused_by)
        try:
            return service.decide(request.path, request.message, request.revision, load, request.refused_by)
        except MalformedMessage as error:
            return Reject(f"{request.path}: the request does not parse: {error}")

    def _route(self, request: Request) -> None:
        self._act(request, self._decide(request))

    def _act(self, request: Request, decision: Decision) -> None:
        if isinstance(decision, Destination):
            self._send(request, decision)
        elif isinstance(decision, Hold):
            self._wait(request, self._desk(request.service).held)
        elif isinstance(decision, Peek):
            self._transport.peek(request.call)
        else:
            self.rejected += 1
            status, http_status = (Status.UNIMPLEMENTED, 404) if decision.unimplemented else (Status.INVALID_ARGUMENT, 400)
            self._finish(request, status, http_status, decision.reason)

    def _send(self, request: Request, to: Destination) -> None:
        desk = self._desk(request.service)
        slots = desk.slots(to.member)
        if not slots.take(request.service.limit(to.member)):
            self._wait(request, slots.waiting if to.pinned else desk.anywhere)
            return
        request.member = to.member
        upstream = self._upstreams.get(to.address)
        if upstream is None:
            upstream = self._upstreams[to.address] = self._transport.connect(to.address)
        if request.was_held:
            self.held_seconds += self._clock() - request.began
            request.was_held = False
        again = request.rounds and not request.service.plain
        headers = [*request.headers, ("cloudstate-retry", b"1")] if again else request.headers
        self._transport.forward(request.call, upstream, headers, REMOVED)

    def _wait(self, request: Request, queue: WaitQueue[int]) -> None:
        if not queue.push(request.call, request.began):
            text = f"{request.service.name}: {self._queue} requests wait already, no more are taken"
            self._finish(request, Status.RESOURCE_EXHAUSTED, 503, text)
            return
        request.queue = queue
        if not request.was_held:
            request.was_held = True
            self.held += 1

    # What lets waiting requests go --------------------------------------------------------------------------------------

    def changed(self, service: Service) -> None:
        """The routes of a service have changed: everything that waits for it is routed anew, in the order in which it waited."""
        desk = self._desk(service)
        for call in desk.release():
            self._resume(call)
        desk.forget_idle(frozenset(service.members))
        self._disconnect()
        for name, reporter in [*self.reporters.items()]:
            if name[0] == service.name and name[1] not in service.revisions and reporter.idle:
                del self.reporters[name]

    def _disconnect(self) -> None:
        """Forget addresses that nobody has any more, once nothing is in flight at a member that has gone."""
        if not any(desk.pods.keys() - self._table.services[name].members.keys() for name, desk in self.desks.items()):
            for address in self._upstreams.keys() - self._table.addresses:
                self._transport.disconnect(self._upstreams.pop(address))

    def _resume(self, call: int) -> None:
        request = self._calls[call]
        request.queue = None
        self._route(request)

    def expire(self, now: float) -> None:
        """Give back what has waited too long: for a pod `hold` seconds, for room at a busy pod the revision's timeout if that is longer."""
        for name, desk in self.desks.items():
            busy = max([self._hold_limit, *(r.timeout for r in self._table.services[name].revisions.values())])
            late = [(call, "no pod could take") for call in desk.held.expired(now, self._hold_limit)]
            for queue in (desk.anywhere, *(slots.waiting for slots in desk.pods.values())):
                late += [(call, "every pod was too busy to take") for call in queue.expired(now, busy)]
            for call, why in late:
                request = self._calls[call]
                request.queue = None
                self._finish(request, Status.UNAVAILABLE, 503, f"{name}: {why} the request within {now - request.began:.0f} s")
        self._forget_removed()

    def _forget_removed(self) -> None:
        """Services that the leader has removed leave memory once their last request has ended."""
        for service in [service for service in self._table.services.values() if service.removed]:
            reporters = {name: reporter for name, reporter in self.reporters.items() if name[0] == service.name}
            if self._desk(service).idle and all(reporter.idle for reporter in reporters.values()):
                self._table.forget(service.name)
                del self.desks[service.name]
                for name in reporters:
                    del self.reporters[name]

    # Ends ---------------------------------------------------------------------------------------------------------------

    def _forwarded(self, call: int, outcome: Outcome, text: str) -> None:
        request = self._calls.get(call)
        if request is None:
            return
        if outcome != Outcome.REFUSED:
            self._end(request)
            return
        self.refused += 1
        member = request.member
        self._leave(request)
        if self._clock() - request.began >= self._hold_limit:
            self._finish(request, Status.UNAVAILABLE, 503, f"{request.service.name}: no pod took the request: {text}")
            return
        if not request.refused_by:
            delay = min(RETRY_LAST, RETRY_FIRST * 2 ** min(request.rounds, 10))
            self._transport.after(delay, lambda: self._again(request))
        request.rounds += 1
        request.refused_by.add(member)
        self._route(request)

    def _again(self, request: Request) -> None:
        """Those who have refused a request may be asked once more. It may have ended meanwhile, and its service be forgotten."""
        request.refused_by.clear()
        if request.queue is None:
            return
        desk = self._desk(request.service)
        if request.queue in (desk.held, desk.anywhere):
            request.queue.discard(request.call)
            self._resume(request.call)

    def _leave(self, request: Request) -> None:
        """A request is no longer in flight; whoever waited for its slot is next."""
        name, request.member = request.member, ""
        service = request.service
        desk, limit, member = self._desk(service), service.limit(name), service.members.get(name)
        slots = desk.slots(name)
        slots.give_back()
        if member is None:  # it left before its last request: no change of the routes may come to clear it away
            desk.forget_idle(frozenset(service.members))
            self._disconnect()
            return

        def fits(call: int) -> bool:
            waiting = self._calls[call]
            return name not in waiting.refused_by and name in service.revisions.get(waiting.revision, NO_REVISION).ready

        while (call := slots.next(limit, desk.anywhere, fits)) is not None:
            waiting = self._calls[call]
            waiting.queue = None
            self._send(waiting, Destination(name, member.data_address, pinned=True))

    def _end(self, request: Request) -> None:
        del self._calls[request.call]
        if request.counted:
            self.reporters[request.service.name, request.revision].end(self._clock())
        if request.queue is not None:
            request.queue.discard(request.call)
            request.queue = None
        if request.member:
            self._leave(request)

    def _finish(self, request: Request, status: Status, http_status: int, text: str) -> None:
        self._fail(request.call, request.grpc, status, http_status, text)
        self._end(request)

    def _fail(self, call: int, grpc: bool, status: Status, http_status: int, text: str) -> None:
        if grpc:
            self._transport.finish(call, status, text)
        else:
            self._transport.respond(call, http_status, probes.TEXT, text.encode() + b"\n")

    # Statistics ---------------------------------------------------------------------------------------------------------

    def statistics(self) -> list[pb.RevisionStats]:
        """What each revision that was not idle did since the last time."""
        found = [(name, reporter.report(self._clock())) for name, reporter in self.reporters.items()]
        return [_message(name, report, self.desks[name[0]].room.taken) for name, report in found if report is not None]

    def present(self) -> list[pb.RevisionStats]:
        """What is in flight or waits now: told to a leader that has heard nothing yet."""
        return [_message(n, Report(r.in_flight, 0), self.desks[n[0]].room.taken) for n, r in self.reporters.items() if r.in_flight]


def _message(name: RevisionName, report: Report, waiting: int) -> pb.RevisionStats:
    service, revision = name
    return pb.RevisionStats(service=service, revision=revision, concurrency=report.concurrency, requests=report.requests, waiting=waiting)
