"""Write Cloudstate entities and actions in Python: classes whose methods are the methods of a gRPC service."""

from cloudstate_sdk.any_values import Float32, Int32, Json, Value
from cloudstate_sdk.context import ActionContext, Context, Forward, ValueContext
from cloudstate_sdk.crdt import Clock, Crdt, Flag, GCounter, GSet, LWWRegister, NotYourTurn, ORMap, ORSet, PNCounter, Vote
from cloudstate_sdk.crdt.context import Change, CrdtContext, StreamedContext, WriteConsistency
from cloudstate_sdk.definition import action, command, crdt_entity, event, event_sourced, restore, snapshot, value_entity
from cloudstate_sdk.function import Function

__all__ = [
    "ActionContext",
    "Change",
    "Clock",
    "Context",
    "Crdt",
    "CrdtContext",
    "Flag",
    "Float32",
    "Forward",
    "Function",
    "GCounter",
    "GSet",
    "Int32",
    "Json",
    "LWWRegister",
    "NotYourTurn",
    "ORMap",
    "ORSet",
    "PNCounter",
    "StreamedContext",
    "Value",
    "ValueContext",
    "Vote",
    "WriteConsistency",
    "action",
    "command",
    "crdt_entity",
    "event",
    "event_sourced",
    "restore",
    "snapshot",
    "value_entity",
]
