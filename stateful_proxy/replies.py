"""What a function's reply has for who waits for it, the same for every kind of component."""

from __future__ import annotations

from collections.abc import Callable

from cloudstate_core.pb.cloudstate import entity_pb2
from cloudstate_core.transport.api import Header
from stateful_proxy.metadata import event_headers, headers_of
from stateful_proxy.service import ANY, MethodInfo


def answer_of(method: MethodInfo, reply: entity_pb2.Reply, report_error: Callable[[str], None]) -> tuple[bytes, list[Header]]:
    """What a reply has for callers: the message (of a method that answers anything, the whole of it), and response headers. Those of a method that
    publishes are an event's (`event_headers`): who publishes makes response headers of them. A reply of another type than the method's is reported.
    """
    payload = reply.payload
    if payload.type_url == method.output_url:
        answer = payload.value
    elif method.output_type == ANY:
        answer = payload.SerializeToString()
    else:
        report_error(method.mistyped(payload.type_url))
        answer = payload.value
    if not reply.HasField("metadata"):
        return answer, []
    return answer, event_headers(reply.metadata) if method.out else headers_of(reply.metadata)
