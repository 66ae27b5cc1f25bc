"""What a batch of operations asks of Redis (pure): one script call for each shard touched, all in one pipeline."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from cloudstate_core.journal.api import Layout, Operation, Outcome, Question, Refused
from cloudstate_core.journal.redis_format import Names, reading_script, shard_script
from cloudstate_core.journal.redis_operations import asked_of, outcome_of

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
        keys, arguments = asked_of(self.prefix, operation)
        self.keys += keys
        self.arguments += arguments
        self.asked.append((place, operation))
        self.reading = self.reading and isinstance(operation, Question)

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
            done = "answered" if isinstance(operation, Question) else "stored"
            outcomes[place] = Refused(f"{where}: {type(operation).__name__.lower()} cannot be {done}: {error}")
    return calls


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
            outcomes[place] = outcome_of(where, operation, values)
        except ValueError as error:
            outcomes[place] = Refused(f"{where}: what is stored cannot be read: {error}")
    return False
