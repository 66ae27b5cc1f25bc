"""Write Cloudstate entities and actions in Python: classes whose methods are the methods of a gRPC service."""

from cloudstate_sdk.any_values import Float32, Int32, Json, Value
from cloudstate_sdk.context import ActionContext, Context, Forward, ValueContext
from cloudstate_sdk.definition import action, command, event, event_sourced, restore, snapshot, value_entity
from cloudstate_sdk.function import Function

__all__ = [
    "ActionContext",
    "Context",
    "Float32",
    "Forward",
    "Function",
    "Int32",
    "Json",
    "Value",
    "ValueContext",
    "action",
    "command",
    "event",
    "event_sourced",
    "restore",
    "snapshot",
    "value_entity",
]
