"""Requests of commands, decoded."""

from __future__ import annotations

from typing import Any

from google.protobuf import any_pb2
from google.protobuf.message import DecodeError, Message

from cloudstate_sdk.context import CommandFailed


def parse(command: Any, kind: type[Message]) -> Message:
    """The command's request. CommandFailed when it is none: that is the caller's mistake, and no reason to end the entity."""
    if kind is any_pb2.Any and command.payload.type_url != "type.googleapis.com/google.protobuf.Any":
        found: Message = any_pb2.Any()
        found.CopyFrom(command.payload)
        return found
    try:
        return kind.FromString(command.payload.value)
    except DecodeError as error:
        raise CommandFailed(f"{command.name}: the request is not a {kind.DESCRIPTOR.full_name}: {error}") from error
