"""How each operation is asked of the shard script in Redis, and what the script's answers mean (pure)."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import Any

from cloudstate_core.journal.api import (
    Activate,
    Active,
    Append,
    Appended,
    At,
    Check,
    Claim,
    Claimed,
    Commit,
    Current,
    Cursor,
    Duplicate,
    Event,
    Fenced,
    Found,
    LogEntry,
    LogPage,
    Lookup,
    Operation,
    Outcome,
    Put,
    Raced,
    Read,
    ReadLog,
    Refused,
    Regressed,
    Seal,
    Sealed,
    Stale,
    Stored,
    Swap,
    Swapped,
    Token,
    Unbound,
    Uninitialised,
    Value,
)  # fmt: skip
from cloudstate_core.journal.redis_format import entity_name, log_name, restored, stored

_LOST_KEYS = "the store lost keys; its memory policy must be noeviction"

# Operations -------------------------------------------------------------------------------------------------------------

_Asked = tuple[Sequence[bytes], Sequence[bytes]]
"""Keys, and the operation's name with its arguments."""


def _claim(prefix: bytes, operation: Claim) -> _Asked:
    return (), [b"claim", b"%d" % operation.expected_epoch, b"%d" % operation.since, operation.owner.encode(), operation.nonce]


def _seal(prefix: bytes, operation: Seal) -> _Asked:
    return (), [b"seal", operation.token.nonce, secrets.token_bytes(8)]


def _check(prefix: bytes, operation: Check) -> _Asked:
    return (), [b"check", operation.token.nonce]


def _activate(prefix: bytes, operation: Activate) -> _Asked:
    name = entity_name(operation.entity)
    token = operation.token
    return (prefix + b"h:" + name, prefix + b"e:" + name), [b"activate", token.nonce, b"%d" % token.epoch, operation.binding]


def _lookup(prefix: bytes, operation: Lookup) -> _Asked:
    return (prefix + b"c:" + entity_name(operation.entity) + b":" + operation.command_id.encode(),), [b"lookup"]


def _append(prefix: bytes, operation: Append) -> _Asked:
    key, events, seq, count = operation.entity, operation.events, operation.expected_seq, len(operation.events)
    name = entity_name(key)
    keys = [prefix + b"h:" + name, prefix + b"e:" + name, prefix + log_name(key.persistence_id)]
    fence = operation.token.nonce, operation.binding
    arguments = [b"append", *fence, b"%d" % seq, b"%d" % (seq + count), key.entity_id.encode(), b"%d" % count]
    _command(prefix, name, operation, keys, arguments)
    arguments += _optional(operation.snapshot)
    arguments += map(stored, events)
    return keys, arguments


def _put(prefix: bytes, operation: Put) -> _Asked:
    name, seq = entity_name(operation.entity), operation.expected_seq
    keys = [prefix + b"h:" + name]
    arguments = [b"put", operation.token.nonce, operation.binding, b"%d" % seq, b"%d" % (seq + 1)]
    _command(prefix, name, operation, keys, arguments)
    arguments += _optional(operation.value)
    return keys, arguments


def _command(prefix: bytes, name: bytes, operation: Append | Put, keys: list[bytes], arguments: list[bytes]) -> None:
    """The command to be remembered with its outcome, if any."""
    if operation.command_id:
        keys.append(prefix + b"c:" + name + b":" + operation.command_id.encode())
        arguments += (b"1", operation.outcome)
    else:
        arguments.append(b"0")


def _optional(value: Value | None) -> tuple[bytes, ...]:
    return (b"0",) if value is None else (b"1", stored(value))


def _read(prefix: bytes, operation: Read) -> _Asked:
    return (prefix + b"r:" + entity_name(operation.entity),), (b"read",)


def _swap(prefix: bytes, operation: Swap) -> _Asked:
    version = operation.expected_version
    arguments = (b"swap", b"%d" % version, b"%d" % (version + 1), *_optional(operation.value))
    return (prefix + b"r:" + entity_name(operation.entity),), arguments


def _read_log(prefix: bytes, operation: ReadLog) -> _Asked:
    kind = operation.persistence_id.encode()
    first = max(0, operation.after)
    between = (first, first + operation.limit - 1) if operation.limit > 0 else (1, 0)
    arguments = (b"read-log", prefix + b"e:%d." % len(kind), b":%b:" % kind, *[b"%d" % place for place in between])
    return (prefix + log_name(operation.persistence_id),), arguments


def _commit(prefix: bytes, operation: Commit) -> _Asked:
    return (prefix + b"p",), (b"commit", operation.token.nonce, operation.consumer.encode(), b"%d" % operation.offset)


def _cursor(prefix: bytes, operation: Cursor) -> _Asked:
    return (prefix + b"p",), (b"cursor", operation.consumer.encode())


_ENCODERS: dict[type, Callable[[bytes, Any], _Asked]] = {
    Claim: _claim, Seal: _seal, Check: _check, Activate: _activate, Lookup: _lookup, Append: _append, Put: _put, Read: _read, Swap: _swap,
    ReadLog: _read_log, Commit: _commit, Cursor: _cursor,
}  # fmt: skip


def asked_of(prefix: bytes, operation: Operation) -> _Asked:
    """How an operation is asked of the script of the shard whose keys begin with `prefix`. ValueError when it cannot be stored."""
    return _ENCODERS[type(operation)](prefix, operation)


# Answers ----------------------------------------------------------------------------------------------------------------


def _active(values: list[Any]) -> Active:
    _, seq, covered, snapshot, tail = values
    events = tuple([Event(number, restored(data)) for number, data in enumerate(tail, covered + 1)])
    return Active(seq, covered, _restored(snapshot), events)


def _restored(data: bytes | None) -> Value | None:
    return None if data is None else restored(data)


def _page(operation: ReadLog, values: list[Any], where: str) -> LogPage | Refused:
    first, entries = max(0, operation.after) + 1, []
    for offset, (seq, name, data) in enumerate(values[1:], first):
        if data is None:
            return Refused(f"{where}: event {seq} of {name.decode()} is in the log and not in the store: {_LOST_KEYS}")
        entries.append(LogEntry(offset, name.decode(), seq, restored(data)))
    return LogPage(tuple(entries))


def _damaged(values: list[Any], where: str) -> Refused:
    return Refused(f"{where}: an entity has {values[2]} events and appended {values[1]}: {_LOST_KEYS}")


_OUTCOMES: dict[bytes, Callable[[Any, list[Any], str], Outcome]] = {
    b"appended": lambda operation, values, where: Appended(operation.expected_seq + (1 if type(operation) is Put else len(operation.events))),
    b"at": lambda operation, values, where: At(values[1]),
    b"log": _page,
    b"stored": lambda operation, values, where: Stored(values[1], _restored(values[2])),
    b"swapped": lambda operation, values, where: Swapped(operation.expected_version + 1),
    b"active": lambda operation, values, where: _active(values),
    b"current": lambda operation, values, where: Current(),
    b"found": lambda operation, values, where: Found(values[1]),
    b"claimed": lambda operation, values, where: Claimed(Token(values[1], operation.nonce)),
    b"sealed": lambda operation, values, where: Sealed(values[1]),
    b"duplicate": lambda operation, values, where: Duplicate(values[1]),
    b"fenced": lambda operation, values, where: Fenced(values[1]),
    b"unbound": lambda operation, values, where: Unbound(values[1]),
    b"regressed": lambda operation, values, where: Regressed(values[1]),
    b"raced": lambda operation, values, where: Raced(values[1]),
    b"stale": lambda operation, values, where: Stale(values[1]),
    b"uninitialised": lambda operation, values, where: Uninitialised(),
    b"damaged": lambda operation, values, where: _damaged(values, where),
    b"failed": lambda operation, values, where: Refused(f"{where}: nothing was written: {values[1].decode(errors='replace')}"),
}


def outcome_of(where: str, operation: Operation, values: list[Any]) -> Outcome:
    """What the script's answer to an operation means. ValueError when what is stored cannot be read."""
    return _OUTCOMES[values[0]](operation, values, where)
