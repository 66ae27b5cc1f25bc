"""What a batch of operations asks of Redis, and what Redis answers (pure): one script call for each shard touched, all in one pipeline."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from typing import Any

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
    Event,
    Fenced,
    Found,
    Layout,
    Lookup,
    Operation,
    Outcome,
    Raced,
    Refused,
    Regressed,
    Seal,
    Sealed,
    Stale,
    Token,
    Unbound,
    Uninitialised,
)  # fmt: skip
from cloudstate_core.journal.redis_format import Names, entity_name, reading_script, restored, shard_script, stored

COMMAND_WINDOW = 24 * 3600
"""Seconds that a command id is remembered."""
_CLUSTER = "it is a node of a Redis Cluster, which is not supported: the journal needs a server without cluster mode"
_HINTS = {
    "OOM": "its memory is full (maxmemory): nothing was written",
    "READONLY": "it is a read-only replica: the journal must be given the master",
    "LOADING": "it is loading its data",
    "MASTERDOWN": "it is a replica without its master",
    "MISCONF": "it cannot save to its disk and takes no writes",
    "NOREPLICAS": "it has fewer replicas than min-replicas-to-write asks for",
    "BUSY": "a script of another client blocks it",
    "NOPERM": "its user lacks permissions: it needs ~cs:* +@hash +@list +@string +@scripting +exists +info +ping +select",
    **dict.fromkeys(("MOVED", "ASK", "CLUSTERDOWN", "CROSSSLOT", "TRYAGAIN"), _CLUSTER),
}
_PASSING = ("OOM", "BUSY", "MISCONF", "NOREPLICAS", "NOPERM")
"""Errors that pass, or that a new connection does not cure."""


def explained(text: str) -> str:
    """An error of the server with what it means."""
    hint = _HINTS.get(text.partition(" ")[0])
    return f"{hint} ({text})" if hint else text


class ShardCall:
    """The call for one shard: what it asks, and which places of the group its answers belong to."""

    def __init__(self, names: Names, layout: Layout, shard: int) -> None:
        self.prefix = names.shard(shard)
        self.keys = [self.prefix + b"f"]
        self.arguments = [layout.journal_id.encode(), b"%d" % COMMAND_WINDOW]
        self.asked: list[tuple[int, Operation]] = []
        self.reading = True
        """Nothing that it asks for writes."""

    def add(self, place: int, operation: Operation) -> None:
        """Ask for one more operation. ValueError when it cannot be stored; then nothing was added."""
        keys, arguments = _ENCODERS[type(operation)](self.prefix, operation)
        self.keys += keys
        self.arguments += arguments
        self.asked.append((place, operation))
        self.reading = self.reading and isinstance(operation, Check | Lookup)

    def packed(self) -> bytes:
        """The command."""
        return (reading_script if self.reading else shard_script).call(self.keys, self.arguments)


def shard_calls(
    where: str, names: Names, layout: Layout, asked: Iterable[tuple[int, Operation]], outcomes: list[Outcome | None]
) -> dict[int, ShardCall]:
    """One call for each shard touched; what cannot be asked at all is refused in `outcomes`, at its place, at once."""
    calls: dict[int, ShardCall] = {}
    for place, operation in asked:
        try:
            call = calls.get(operation.shard) or ShardCall(names, layout, operation.shard)
            call.add(place, operation)
            calls[operation.shard] = call
        except ValueError as error:
            outcomes[place] = Refused(f"{where}: {type(operation).__name__.lower()} cannot be stored: {error}")
    return calls


# Operations -------------------------------------------------------------------------------------------------------------

_Asked = tuple[tuple[bytes, ...], list[bytes]]


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
    name, events = entity_name(operation.entity), operation.events
    keys: tuple[bytes, ...] = (prefix + b"h:" + name, prefix + b"e:" + name)
    seq = operation.expected_seq
    arguments = [b"append", operation.token.nonce, operation.binding, b"%d" % seq, b"%d" % (seq + len(events))]
    if operation.command_id:
        keys += (prefix + b"c:" + name + b":" + operation.command_id.encode(),)
        arguments += (b"1", operation.outcome)
    else:
        arguments.append(b"0")
    if operation.snapshot is not None:
        arguments += (b"1", stored(operation.snapshot))
    else:
        arguments.append(b"0")
    arguments.append(b"%d" % len(events))
    arguments += map(stored, events)
    return keys, arguments


_ENCODERS: dict[type, Callable[[bytes, Any], _Asked]] = {
    Claim: _claim, Seal: _seal, Check: _check, Activate: _activate, Lookup: _lookup, Append: _append,
}  # fmt: skip

# Answers ----------------------------------------------------------------------------------------------------------------


def settle(where: str, call: ShardCall, answer: list[Any] | str, outcomes: list[Outcome | None]) -> bool:
    """Put a call's outcomes in their places; True when the server must be looked at anew before it is asked again.

    A text is an error of the server, which has performed nothing of the call.
    """
    if isinstance(answer, str):
        for place, _ in call.asked:
            outcomes[place] = Refused(f"{where}: {explained(answer)}")
        return not answer.startswith(_PASSING)
    if answer and answer[0] == b"replaced":
        for place, _ in call.asked:
            outcomes[place] = Refused(f"{where}: holds journal {answer[1].decode()} now: it lost the data that was acknowledged")
        return True
    for (place, operation), values in zip(call.asked, answer, strict=True):
        try:
            outcomes[place] = _OUTCOMES[values[0]](operation, values, where)
        except ValueError as error:
            outcomes[place] = Refused(f"{where}: what is stored of an entity cannot be read: {error}")
    return False


def _active(values: list[Any]) -> Active:
    _, seq, covered, snapshot, tail = values
    events = tuple([Event(number, restored(data)) for number, data in enumerate(tail, covered + 1)])
    return Active(seq, covered, None if snapshot is None else restored(snapshot), events)


def _damaged(values: list[Any], where: str) -> Refused:
    return Refused(f"{where}: an entity at sequence {values[1]} has {values[2]} events: the store lost keys; its memory policy must be noeviction")


_OUTCOMES: dict[bytes, Callable[[Any, list[Any], str], Outcome]] = {
    b"appended": lambda operation, values, where: Appended(operation.expected_seq + len(operation.events)),
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
