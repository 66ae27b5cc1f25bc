"""Requests that the front door answers itself: probes of the kubelet, of Knative's ingresses, and of whoever asks who is in the path (pure).

The kubelet's fail while the activator must not get traffic; the others prove a path, so they succeed as long as there is one.
"""

from __future__ import annotations

from cloudstate_core.transport.api import Header

KUBELET = b"kube-probe/"
TEXT: list[Header] = [("content-type", b"text/plain; charset=utf-8")]
Answer = tuple[int, list[Header], bytes]
"""Status, headers and body."""


def answer(user_agent: bytes, probe: bytes, wanted: bytes, problem: str) -> Answer | None:
    """The answer to a probe, None when the request is none.

    `probe` and `wanted` are the values of K-Network-Probe and K-Network-Hash; `problem` says why the activator is not ready, '' when it is.
    """
    if user_agent.startswith(KUBELET):
        return (503, TEXT, f"{problem}\n".encode()) if problem else (200, TEXT, b"ready\n")
    if probe == b"probe":
        return (200, [("k-network-hash", wanted)], b"") if wanted else (400, TEXT, b"K-Network-Hash must be set in a probe\n")
    if probe == b"activator":
        return 200, TEXT, b"activator"
    return (400, TEXT, b"K-Network-Probe must be probe or activator\n") if probe else None
