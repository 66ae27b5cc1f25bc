"""Write Cloudstate entities in Python: classes with commands and events, served to a stateful proxy over gRPC."""

from cloudstate_sdk.entity import Context, command, event, event_sourced, restore, snapshot
from cloudstate_sdk.function import Function

__all__ = ["Context", "Function", "command", "event", "event_sourced", "restore", "snapshot"]
