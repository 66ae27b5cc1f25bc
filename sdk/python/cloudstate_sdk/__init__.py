"""Write Cloudstate entities and actions in Python: classes whose methods are the methods of a gRPC service."""

from cloudstate_sdk.context import ActionContext, Context, Forward, ValueContext
from cloudstate_sdk.definition import action, command, event, event_sourced, restore, snapshot, value_entity
from cloudstate_sdk.function import Function

__all__ = [
    "ActionContext",
    "Context",
    "Forward",
    "Function",
    "ValueContext",
    "action",
    "command",
    "event",
    "event_sourced",
    "restore",
    "snapshot",
    "value_entity",
]
