"""What the admin port answers: /alive, /ready, /metrics in Prometheus' text form, /routes as JSON. Pure: state in, answer out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from activator.coordinator import LeaderStream
from activator.router import Router
from activator.routes import RouteTable, Service
from cloudstate_core.transport.api import Header

TEXT = "text/plain; charset=utf-8"
PATHS = "paths: /alive /ready /metrics /routes\n"


@dataclass(slots=True)
class Admin:
    """Answers for one activator; `draining` once it was told to stop."""

    table: RouteTable
    router: Router
    leader: LeaderStream
    draining: bool = False
    errors: int = 0
    """Mistakes of the activator itself."""

    @property
    def problem(self) -> str:
        """Why no traffic should come here, '' when it should."""
        if self.draining:
            return "draining"
        return "" if self.table.services or self.leader.heard else "no routes have come from the leader yet"

    def answer(self, target: str) -> tuple[int, list[Header], bytes]:
        """Status, headers and body for a path."""
        path = target.partition("?")[0]
        if path == "/alive":
            return _answer(200, TEXT, "alive\n")
        if path == "/ready":
            problem = self.problem
            return _answer(503 if problem else 200, TEXT, f"{problem or 'ready'}\n")
        if path == "/metrics":
            return _answer(200, "text/plain; version=0.0.4; charset=utf-8", "".join(self._metrics()))
        if path == "/routes":
            return _answer(200, "application/json", json.dumps([_describe(s) for s in self.table.services.values()], indent=1) + "\n")
        return _answer(404, TEXT, PATHS)

    def _metrics(self) -> Iterable[str]:
        router, leader = self.router, self.leader
        yield "# TYPE kn_revision_request_concurrency gauge\n"
        for (service, revision), reporter in router.reporters.items():
            yield f"kn_revision_request_concurrency{_labels(service, revision)} {reporter.in_flight}\n"
        yield "# TYPE kn_revision_request_queued gauge\n"
        for service, desk in router.desks.items():
            yield f"kn_revision_request_queued{_labels(service, self.table.services[service].revision)} {desk.room.taken}\n"
        yield _metric("kn_activator_stats_conn_reachable", "gauge", int(leader.connected))
        yield _metric("kn_activator_stats_conn_errors_total", "counter", leader.lost)
        yield _metric("cloudstate_activator_requests_total", "counter", router.requests)
        yield _metric("cloudstate_activator_refused_total", "counter", router.refused)
        yield _metric("cloudstate_activator_rejected_total", "counter", router.rejected)
        yield _metric("cloudstate_activator_cold_starts_total", "counter", router.cold_starts)
        yield _metric("cloudstate_activator_errors_total", "counter", self.errors)
        yield "# TYPE cloudstate_activator_held_seconds summary\n"
        yield f"cloudstate_activator_held_seconds_sum {router.held_seconds:.6f}\ncloudstate_activator_held_seconds_count {router.held}\n"


def _answer(status: int, content_type: str, body: str) -> tuple[int, list[Header], bytes]:
    return status, [("content-type", content_type.encode())], body.encode()


def _metric(name: str, kind: str, value: float) -> str:
    return f"# TYPE {name} {kind}\n{name} {value:g}\n"


def _labels(service: str, revision: str) -> str:
    namespace, _, name = service.partition("/")
    return f'{{k8s_namespace_name="{namespace}",kn_service_name="{name}",kn_revision_name="{revision}"}}'


def _describe(service: Service) -> dict[str, object]:
    owners = Counter(entry.owner for entry in service.entries)
    return {
        "service": service.name,
        "generation": service.generation,
        "hosts": service.hosts,
        "plain": service.plain,
        "methods": sorted(service.methods),
        "revisions": {
            name: {"ready": r.ready, "containerConcurrency": r.concurrency, "timeoutSeconds": r.timeout} for name, r in service.revisions.items()
        },
        "shards": {
            "total": len(service.entries),
            "moving": sum(entry.moving for entry in service.entries),
            "free": owners.pop("", 0),
            "owned": dict(owners),
        },
        "members": {name: member.data_address for name, member in service.members.items()},
    }
