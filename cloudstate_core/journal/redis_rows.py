"""How the journal lies in Redis, and how operations travel to its script and back (pure).

Keys of a shard share a hash tag, so that a script touches one slot: `{keyspace:shard}:f` fence, `:h:` head of an entity, `:e:` its events (the
n-th of the list has sequence n), `:c:` record of a command. `{keyspace}:layout` is written last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from cloudstate_core.journal.api import (
    Activate,
    Active,
    Append,
    Appended,
    Check,
    Claim,
    Claimed,
    Current,
    Duplicate,
    EntityKey,
    Event,
    Fenced,
    Found,
    Lookup,
    Operation,
    Outcome,
    Raced,
    Regressed,
    Seal,
    Sealed,
    Stale,
    Token,
    Unbound,
    Uninitialised,
    Value,
)  # fmt: skip

Argument = str | bytes | int
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[str, bytes]).decode


def packed(value: Value) -> bytes:
    """A stored value."""
    return _encode((value.type_url, value.data))


def value_of(data: bytes) -> Value:
    """The value that was stored."""
    return Value(*_decode(data))


class Keys:
    """Names of the keys of one keyspace."""

    def __init__(self, keyspace: str) -> None:
        self._keyspace = keyspace
        self.layout = f"{{{keyspace}}}:layout"

    def fence(self, shard: int) -> str:
        """Fence of a shard."""
        return f"{{{self._keyspace}:{shard}}}:f"

    def entity(self, shard: int, entity: EntityKey) -> tuple[str, str]:
        """Head and events of an entity. The length of the first part keeps apart names that contain colons."""
        name = f"{len(entity.persistence_id)}:{entity.persistence_id}:{entity.entity_id}"
        tag = f"{{{self._keyspace}:{shard}}}"
        return f"{tag}:h:{name}", f"{tag}:e:{name}"

    def command(self, shard: int, entity: EntityKey, command_id: str) -> str:
        """Record of a command."""
        name = f"{len(entity.persistence_id)}:{entity.persistence_id}:{len(entity.entity_id)}:{entity.entity_id}"
        return f"{{{self._keyspace}:{shard}}}:c:{name}:{command_id}"


def call_of(operation: Operation, keys: Keys, window: int, fresh_nonce: bytes) -> tuple[list[str], list[Argument]]:
    """Keys and arguments of the script. `window` = seconds that commands are remembered."""
    match operation:
        case Append(shard=shard, entity=entity):
            names = [keys.fence(shard), *keys.entity(shard, entity)]
            if operation.command_id:
                names.append(keys.command(shard, entity, operation.command_id))
            snapshot = packed(operation.snapshot) if operation.snapshot is not None else b""
            head: list[Argument] = [operation.binding, operation.expected_seq, operation.outcome, window, snapshot]
            return names, ["append", operation.token.nonce, *head, *(packed(event) for event in operation.events)]
        case Activate(shard=shard, entity=entity):
            names = [keys.fence(shard), *keys.entity(shard, entity)]
            return names, ["activate", operation.token.nonce, operation.token.epoch, operation.binding]
        case Claim():
            arguments: list[Argument] = ["claim", operation.expected_epoch, operation.since, operation.owner, operation.nonce]
            return [keys.fence(operation.shard)], arguments
        case Seal():
            return [keys.fence(operation.shard)], ["seal", operation.token.nonce, fresh_nonce]
        case Check():
            return [keys.fence(operation.shard)], ["check", operation.token.nonce]
        case Lookup(shard=shard, entity=entity):
            return [keys.command(shard, entity, operation.command_id)], ["lookup"]


def outcome_of(operation: Operation, answer: Sequence[Any]) -> Outcome:
    """What the script answered."""
    name = answer[0].decode()
    match name:
        case "appended":
            return Appended(int(answer[1]))
        case "active":
            start = int(answer[2])
            tail = tuple(Event(n, value_of(data)) for n, data in enumerate(answer[4], start + 1))
            return Active(int(answer[1]), start, value_of(answer[3]) if answer[3] else None, tail)
        case "claimed" if isinstance(operation, Claim):
            return Claimed(Token(int(answer[1]), operation.nonce))
        case "sealed":
            return Sealed(int(answer[1]))
        case "fenced":
            return Fenced(int(answer[1]))
        case "duplicate":
            return Duplicate(answer[1])
        case "unbound":
            return Unbound(int(answer[1]))
        case "regressed":
            return Regressed(int(answer[1]))
        case "raced":
            return Raced(int(answer[1]))
        case "stale":
            return Stale(int(answer[1]))
        case "current":
            return Current()
        case "found":
            return Found(answer[1] if len(answer) > 1 else None)
        case "uninitialised":
            return Uninitialised()
        case _:
            raise ValueError(f"the journal's script answered {name!r} to {type(operation).__name__}")
