"""grpc.health.v1 for the function's services: Check answers once, Watch follows until the proxy drains."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cloudstate_core.entity_key import MalformedMessage, key_of
from cloudstate_core.transport.api import Status, Transport

CHECK, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"
MAX_WATCHERS = 1_000

SERVING, NOT_SERVING, SERVICE_UNKNOWN = b"\x08\x01", b"\x08\x02", b"\x08\x03"
"""HealthCheckResponse messages, encoded."""
_STRING = 9


class Health:
    """Answers health calls; `serving` tells whether commands are taken."""

    def __init__(self, transport: Transport, services: Sequence[str], serving: Callable[[], bool]) -> None:
        self._transport, self._known, self._serving = transport, frozenset(("", *services)), serving
        self._watchers: dict[int, bytes] = {}
        self._closed = False

    def check(self, call: int, data: bytes) -> None:
        """One HealthCheckRequest."""
        service = self._service(call, data)
        if service is None:
            return
        if service in self._known:
            self._transport.reply(call, self._status())
        else:
            self._transport.finish(call, Status.NOT_FOUND, f"{service}: is not a service of this function")

    def watch(self, call: int, data: bytes) -> None:
        """Tell the status now and at each change; a service that is not known stays SERVICE_UNKNOWN."""
        service = self._service(call, data)
        if service is None:
            return
        if len(self._watchers) >= MAX_WATCHERS:
            self._transport.finish(call, Status.RESOURCE_EXHAUSTED, f"{MAX_WATCHERS} callers watch already, no more are taken")
            return
        status = self._watchers[call] = self._status() if service in self._known else SERVICE_UNKNOWN
        self._transport.send_message(call, status)
        if self._closed:  # they come back at once, and an open call would keep the proxy until its time is over
            self._end()

    def forget(self, call: int) -> bool:
        """A caller is gone; False when it did not watch."""
        return self._watchers.pop(call, None) is not None

    def changed(self) -> None:
        """Tell the watchers, if the status is another one."""
        status = self._status()
        for call, told in self._watchers.items():
            if told not in (status, SERVICE_UNKNOWN):
                self._watchers[call] = status
                self._transport.send_message(call, status)

    def close(self) -> None:
        """Tell the last status and end every watch."""
        self._closed = True
        self.changed()
        self._end()

    def _end(self) -> None:
        for call in self._watchers:
            self._transport.finish(call, Status.UNAVAILABLE, "this proxy is shutting down")
        self._watchers.clear()

    def _status(self) -> bytes:
        return SERVING if self._serving() else NOT_SERVING

    def _service(self, call: int, data: bytes) -> str | None:
        try:
            return key_of(data, [((1,), _STRING)])
        except MalformedMessage as error:
            self._transport.finish(call, Status.INVALID_ARGUMENT, f"the request is not a grpc.health.v1.HealthCheckRequest: {error}")
            return None
