"""What a test sees of a command: every payload decoded into the message that it is.

Guarantee: a test that expects an answer and gets none fails with the reason, never with an empty message.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from google.protobuf import any_pb2
from google.protobuf.descriptor import FileDescriptor

from cloudstate_sdk.any_values import from_any
from cloudstate_sdk.definition import ANY, Definition
from cloudstate_sdk.pb.cloudstate import entity_pb2


class NoReply(AssertionError):
    """A test reads the reply of a command that gave none: it failed, was forwarded, or returned nothing."""


class Crashed(Exception):
    """A handler raised something other than `fail`: the entity leaves memory (a replicated value does not), and the caller of a proxy gets an error.
    The log has the traceback."""


@dataclass(frozen=True, slots=True)
class Called:
    """A call of another method that a command asked for."""

    service: str
    method: str
    request: Any
    metadata: list[tuple[str, str | bytes]] = field(default_factory=list, kw_only=True)


@dataclass(frozen=True, slots=True)
class Effect(Called):
    """A side effect."""

    synchronous: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    """What the caller of a command gets, and whom else it calls."""

    command: str
    answer: Any = None
    """The reply; None where there is none. `reply` is the same for tests that need one."""
    failure: str | None = None
    """The text of `fail`."""
    forward: Called | None = None
    effects: list[Effect] = field(default_factory=list)
    metadata: list[tuple[str, str | bytes]] = field(default_factory=list)
    """Of the reply."""

    @property
    def reply(self) -> Any:
        """The reply; NoReply when there is none."""
        if self.answer is None:
            raise NoReply(f"{self.command} gave no reply: it {self._instead()}")
        return self.answer

    def _instead(self) -> str:
        if self.failure is not None:
            return f"failed with {self.failure!r}"
        if self.forward is not None:
            return f"was forwarded to {self.forward.service}.{self.forward.method}"
        return "returned nothing"


def decoded(payload: any_pb2.Any, file: FileDescriptor) -> Any:
    """The value in an Any; the Any itself when neither `file` nor what it was loaded with knows the type."""
    return from_any(payload, file.pool)


def outcome(definition: Definition, command: str, action: entity_pb2.ClientAction, effects: Iterable[entity_pb2.SideEffect]) -> dict[str, Any]:
    """The fields of a `Result`. TypeError when the reply is of another type than the method's: its caller could not read it."""
    kind, file = action.WhichOneof("action"), definition.descriptor
    fields: dict[str, Any] = {"command": command, "effects": [_effect(effect, file) for effect in effects]}
    if kind == "reply":
        fields["answer"] = _read(definition, command, action.reply.payload)
        fields["metadata"] = _entries(action.reply.metadata)
    elif kind == "forward":
        forward = action.forward
        called = Called(forward.service_name, forward.command_name, decoded(forward.payload, file), metadata=_entries(forward.metadata))
        fields["forward"] = called
    elif kind == "failure":
        fields["failure"] = action.failure.description
    return fields


def _effect(effect: entity_pb2.SideEffect, file: FileDescriptor) -> Effect:
    about = (effect.service_name, effect.command_name, decoded(effect.payload, file), effect.synchronous)
    return Effect(*about, metadata=_entries(effect.metadata))


def _entries(metadata: entity_pb2.Metadata) -> list[tuple[str, str | bytes]]:
    return [(entry.key, getattr(entry, entry.WhichOneof("value") or "string_value")) for entry in metadata.entries]


def _read(definition: Definition, command: str, payload: any_pb2.Any) -> Any:
    method = definition.descriptor.pool.FindServiceByName(definition.service).methods_by_name[command]
    wanted, found = method.output_type.full_name, payload.type_url.rpartition("/")[2]
    if wanted != found:
        raise TypeError(f"{method.full_name} returns {wanted}, but `{definition.commands[command].handler}` replied {payload.type_url}")
    answer = decoded(payload, definition.descriptor)
    return decoded(answer, definition.descriptor) if wanted == ANY else answer
