"""Test components where they are written: in memory with a kit, or behind a real proxy with `proxied`.

The kits play the proxy's part of the protocol to the code that serves a component for real: what a test sees of a command is what the proxy and the
caller would get. They need neither network nor proxy, and no event loop in the test.
"""

from cloudstate_sdk.testkit.actions import ActionKit
from cloudstate_sdk.testkit.crdt import CrdtKit, CrdtResult, CrdtStream
from cloudstate_sdk.testkit.event_sourced import EventSourcedKit, EventSourcedResult
from cloudstate_sdk.testkit.results import Called, Crashed, Effect, NoReply, Result
from cloudstate_sdk.testkit.values import ValueKit, ValueResult

__all__ = [
    "ActionKit",
    "Called",
    "Crashed",
    "CrdtKit",
    "CrdtResult",
    "CrdtStream",
    "Effect",
    "EventSourcedKit",
    "EventSourcedResult",
    "NoReply",
    "Result",
    "ValueKit",
    "ValueResult",
]
