"""A request at the front door: what is read of its headers, what a pod is told besides them, and where it is."""

from __future__ import annotations

from dataclasses import dataclass, field

from activator.admission import WaitQueue
from activator.routes import Service
from cloudstate_core.transport.api import Header, ListenOptions

COMMAND_ID, ORIGINAL_HOST = "cloudstate-command-id", "k-original-host"
ROUTED_BY = (":authority", "knative-serving-namespace", "knative-serving-revision", COMMAND_ID, ORIGINAL_HOST)
PICK = (*ROUTED_BY, "user-agent", "k-network-probe", "k-network-hash")
LISTEN = ListenOptions(peek=True, pick=PICK)
LISTEN_HTTP = ListenOptions(peek=True, pick=PICK, http_only=True)
REMOVED = ("knative-serving-*", "cloudstate-hop")


@dataclass(slots=True, eq=False)
class Request:
    """A request from its first message to its end."""

    call: int
    service: Service
    revision: str
    path: str
    message: bytes | None
    """None = not seen."""
    headers: list[Header]
    grpc: bool
    began: float
    member: str = ""
    """Where it is in flight, '' = nowhere."""
    queue: WaitQueue[int] | None = None
    """Where it waits."""
    was_held: bool = False
    counted: bool = False
    rounds: int = 0
    refused_by: set[str] = field(default_factory=set)


def headers_of(picked: tuple[bytes, ...], command: bytes) -> list[Header]:
    """What a pod is told besides the caller's own headers: queue-proxy that the request was counted here, and a proxy which command it is
    (b'' = none)."""
    headers = [("k-proxy-request", b"activator")]
    if picked[0] and not picked[4]:
        headers.append((ORIGINAL_HOST, picked[0]))
    if command:
        headers.append((COMMAND_ID, command))
    return headers
