"""Requests of commands, decoded."""

from __future__ import annotations

from typing import Any

from google.protobuf import any_pb2
from google.protobuf.message import DecodeError

from cloudstate_sdk.context import ANY, CommandFailed
from cloudstate_sdk.definition import Command
from cloudstate_sdk.kinds import read


def parse(command: Any, target: Command) -> Any:
    """The command's request. CommandFailed when it is none: that is the caller's mistake, and no reason to end the entity."""
    kind = target.request
    try:
        return _opened(command.payload, target) if target.opens else kind.FromString(command.payload.value)
    except DecodeError as error:
        wanted = any_pb2.Any if target.opens else kind
        raise CommandFailed(f"{command.name}: the request is not a {wanted.DESCRIPTOR.full_name}: {error}") from error
    except ValueError as error:
        raise CommandFailed(f"{command.name}: the request is not what `{target.handler}` takes: {error}") from error


def _opened(payload: any_pb2.Any, target: Command) -> Any:
    """What a method gets whose request is an Any: a caller's comes wrapped in the protocol's, that of an event or a forward as it is."""
    inner = any_pb2.Any()
    inner.CopyFrom(payload)
    if payload.type_url == ANY:
        inner = any_pb2.Any.FromString(payload.value)
    return read(inner, target.request, target.pool)
