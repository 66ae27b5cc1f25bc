"""One owned entity in memory, and the encoding of its commands."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from cloudstate_core.journal.api import EntityKey, Token
from cloudstate_core.pb.cloudstate import entity_pb2
from cloudstate_core.transport.api import Header
from stateful_proxy.service import MethodInfo

if TYPE_CHECKING:
    from stateful_proxy.kinds import Kind


class State(enum.IntEnum):
    """What an entity is waiting for."""

    ACTIVATING = 0
    """For the journal to bind and read it."""
    IDLE = 1
    """For a command."""
    BUSY = 2
    """For the function's answer to the command in flight."""
    APPENDING = 3
    """For the journal to store the answer's events."""
    LOOKING_UP = 4
    """For the journal to say whether a command was executed before."""
    QUEUED = 5
    """For another entity's stream to end: the function takes no more of them."""


ACTIVATING, IDLE, BUSY, APPENDING, LOOKING_UP, QUEUED = State
"""An attribute of an enumeration takes eight times as long to read as a name does, and each command reads a dozen."""


class Command(msgspec.Struct, eq=False):
    """One command on an owned entity, and how it came."""

    call: int
    method: MethodInfo
    key: str
    payload: bytes
    command_id: str = ""
    retry: bool = False
    """It may have been executed before: its id is looked up first."""
    passed: bool = False
    """Another proxy has passed it on: it goes no further."""
    chain: tuple[str, ...] = ()
    """Methods that led here by forwards and side effects."""
    metadata: bytes = b""
    """What the entity gets of the caller's headers, encoded; empty: none."""
    raw: bool = True
    """The transport has the whole request, as a caller sent it, and can pass it on as it is."""
    passes: int = 0
    """Times that it was sent on its way again, since it was executed nowhere."""
    looked_up: bool = False
    attempts: int = 0
    """Times that it was executed again, since its append was refused."""


class Answer(msgspec.Struct, eq=False):
    """What the caller gets once the change is stored, and what is done besides."""

    payload: bytes
    headers: list[Header]
    expected_seq: int
    steps: int
    """By how much the sequence grows."""
    missing: bool = False
    """The function gave no client action: the caller gets an error although the change is stored."""
    forward: entity_pb2.Forward | None = None
    """Another method answers instead."""
    effects: Sequence[entity_pb2.SideEffect] = ()


@dataclass(slots=True, eq=False)
class Entity:
    """In-memory side of an entity. `stream` is 0 while there is none."""

    key: EntityKey
    shard: int
    token: Token
    service: str
    kind: Kind
    id_field: bytes
    state: State = ACTIVATING
    binding: bytes = b""
    stream: int = 0
    seq: int = 0
    next_id: int = 1
    current: Command | None = None
    answer: Answer | None = None
    """There from the append until the journal has said what became of it."""
    started: float = 0.0
    used: float = 0.0
    idle_limit: float = 30.0
    leaving: bool = False
    """Takes no more commands: its shard drains or is lost."""
    mailbox: deque[Command] = field(default_factory=deque)

    def done(self) -> None:
        """No command is in flight any more."""
        self.state, self.current, self.answer = IDLE, None, None


def _varint(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


_LONG = 1 << 14
_SHORT = tuple(_varint(number) for number in range(_LONG))
"""All encodings of up to two bytes, ready made: each command needs four of them."""


def varint(number: int) -> bytes:
    """Protobuf's encoding of an unsigned number."""
    return _SHORT[number] if number < _LONG else _varint(number)


def id_field(entity_id: str) -> bytes:
    """Field 1 (entity_id) of a Command."""
    raw = entity_id.encode()
    return b"\n" + varint(len(raw)) + raw


class CommandEncoder:
    """Encodes a stream message that carries a command, from parts prepared once for each method: the innermost path sends one per call."""

    def __init__(self) -> None:
        self._prepared: dict[str, tuple[bytes, int, bytes, int]] = {}

    def encode(self, tag: bytes, id_field: bytes, command_id: int, method: MethodInfo, payload: bytes, metadata: bytes = b"") -> bytes:
        """The encoded message; `tag` is that of its command field. All sizes are found first, so that everything is copied once."""
        opening, opening_size, url, url_size = self._prepared.get(method.path) or self._prepare(method)
        size = len(payload)
        payload_size = _SHORT[size] if size < _LONG else _varint(size)
        size += url_size + len(payload_size)
        any_size = _SHORT[size] if size < _LONG else _varint(size)
        number = _SHORT[command_id] if command_id < _LONG else _varint(command_id)
        size += len(id_field) + 1 + len(number) + opening_size + len(any_size)
        if metadata:
            metadata = b"2" + varint(len(metadata)) + metadata
            size += len(metadata)
        command_size = _SHORT[size] if size < _LONG else _varint(size)
        return b"".join((tag, command_size, id_field, b"\x10", number, opening, any_size, url, payload_size, payload, metadata))

    def _prepare(self, method: MethodInfo) -> tuple[bytes, int, bytes, int]:
        """What is the same for every command of a method, and its sizes: name and tag of the payload, type URL and tag of its value."""
        name, url = method.name.encode(), f"type.googleapis.com/{method.input_type}".encode()
        opening, start = b"\x1a" + varint(len(name)) + name + b'"', b"\n" + varint(len(url)) + url + b"\x12"
        prepared = self._prepared[method.path] = (opening, len(opening), start, len(start))
        return prepared
