"""The admin port: readiness, liveness, metrics and views of shards and entities. Never keys or payloads of entities."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from cloudstate_core.transport.api import Event, Transport

JSON = [("content-type", b"application/json")]
TEXT = [("content-type", b"text/plain; charset=utf-8")]
METRICS = [("content-type", b"text/plain; version=0.0.4; charset=utf-8")]


def exposition(values: Mapping[str, float]) -> bytes:
    """Values in the Prometheus text form; names that end in `_total` are counters."""
    lines = []
    for name, value in values.items():
        lines += [f"# TYPE {name} {'counter' if name.endswith('_total') else 'gauge'}", f"{name} {value}"]
    return ("\n".join(lines) + "\n").encode()


class Admin:
    """Answers HTTP events of the admin port. `problem` gives why the proxy is not ready, '' when it is; `views` are pages of JSON."""

    def __init__(
        self,
        transport: Transport,
        problem: Callable[[], str],
        metrics: Callable[[], Mapping[str, float]],
        views: Mapping[str, Callable[[], Mapping[str, object]]],
    ) -> None:
        self._transport, self._problem, self._metrics, self._views = transport, problem, metrics, views

    def on_event(self, event: Event) -> None:
        """Answer one HTTP event."""
        _, call, _, (_, target, _) = event
        path = target.partition("?")[0]
        if path == "/alive":
            self._transport.respond(call, 200, TEXT, b"alive\n")
        elif path == "/ready":
            problem = self._problem()
            self._transport.respond(call, 503 if problem else 200, TEXT, f"{problem or 'ready'}\n".encode())
        elif path == "/metrics":
            self._transport.respond(call, 200, METRICS, exposition(self._metrics()))
        elif path in self._views:
            self._transport.respond(call, 200, JSON, json.dumps(self._views[path]()).encode() + b"\n")
        else:
            paths = " ".join(("/alive", "/ready", "/metrics", *self._views))
            self._transport.respond(call, 404, TEXT, f"paths: {paths}\n".encode())
