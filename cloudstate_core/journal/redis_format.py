"""How a keyspace looks in Redis: the names of its keys, the form of its values, and commands as they go over the wire (pure).

The keys of a shard share the hash tag `{KEYSPACE:SHARD}`, so a script touches one slot:

    cs:{KEYSPACE}:layout            hash    journal, shards, hash, format
    cs:{KEYSPACE:SHARD}:f           hash    journal, epoch, nonce, generation, owner: the fence
    cs:{KEYSPACE:SHARD}:h:ENTITY    hash    seq, epoch, binding, snapshot_seq, puts, snapshot: the head
    cs:{KEYSPACE:SHARD}:e:ENTITY    list    the events
    cs:{KEYSPACE:SHARD}:c:ENTITY:ID string  outcome of a command; it alone expires
    cs:{KEYSPACE:SHARD}:r:ENTITY    hash    version, value: a replicated value's record
    cs:{KEYSPACE:SHARD}:l:TYPE      list    the log of the entities with persistence id TYPE; the n-th entry has offset n
    cs:{KEYSPACE:SHARD}:p           hash    the cursor of each consumer

ENTITY is `LENGTH.LENGTH:PERSISTENCE_ID:ENTITY_ID`: the lengths in bytes make it unambiguous. A value is stored as the length of its type URL,
a space, the type URL and the data. An event has its sequence less the entity's puts before it as its place in the list of events; an entry of
a log is `SEQUENCE PUTS ENTITY_ID`, which finds it there.
"""

from __future__ import annotations

import contextlib
import hashlib
import pathlib
from collections.abc import Sequence
from typing import Any

from cloudstate_core.journal.api import EntityKey, Value

pack_command: Any = None
"""Packs a command in C. Without hiredis it takes longer, and the outcome is the same."""
with contextlib.suppress(ImportError):
    from hiredis import pack_command

MAX_VALUE = 512_000_000
"""Bytes of a value with room for its type URL; beyond 512 MiB Redis ends the connection."""
HERE = pathlib.Path(__file__).parent
_SIZES = [b"$%d\r\n" % size for size in range(512)]


def packed(*arguments: bytes) -> bytes:
    """One command as it goes over the wire."""
    if pack_command is not None:
        command: bytes = pack_command(arguments)
        return command
    parts = [b"*%d\r\n" % len(arguments)]
    for argument in arguments:
        size = len(argument)
        parts += (_SIZES[size] if size < len(_SIZES) else b"$%d\r\n" % size, argument, b"\r\n")
    return b"".join(parts)


class Script:
    """A script, called by its digest once it was loaded."""

    def __init__(self, text: bytes) -> None:
        self._text, self._digest = text, hashlib.sha1(text, usedforsecurity=False).hexdigest().encode()

    def load(self) -> bytes:
        """The command that makes it known to the server."""
        return packed(b"SCRIPT", b"LOAD", self._text)

    def call(self, keys: Sequence[bytes], arguments: Sequence[bytes]) -> bytes:
        """The command that runs it."""
        return packed(b"EVALSHA", self._digest, b"%d" % len(keys), *keys, *arguments)


_SHARD, _OPEN = (HERE / "redis_shard.lua").read_bytes(), (HERE / "redis_open.lua").read_bytes()
shard_script = Script(_SHARD)
"""Operations on one shard."""
reading_script = Script(_SHARD.replace(b"#!lua", b"#!lua flags=allow-oom", 1))
"""The same for operations that write nothing: it runs when memory is full, too."""
open_script = Script(_OPEN)
"""Makes a keyspace, or tells its layout."""
SCRIPTS = (shard_script, reading_script, open_script)


class Names:
    """The keys of a keyspace."""

    def __init__(self, keyspace: str) -> None:
        self._keyspace = keyspace.encode()
        self.layout = b"cs:{%b}:layout" % self._keyspace

    def shard(self, shard: int) -> bytes:
        """What every key of a shard begins with."""
        return b"cs:{%b:%d}:" % (self._keyspace, shard)

    def fence(self, shard: int) -> bytes:
        """The fence of a shard."""
        return self.shard(shard) + b"f"


def log_name(persistence_id: str) -> bytes:
    """The log of an entity type within its shard."""
    return b"l:" + persistence_id.encode()


def entity_name(entity: EntityKey) -> bytes:
    """An entity within its shard. UnicodeEncodeError when it is no proper text."""
    kind, name = entity.persistence_id.encode(), entity.entity_id.encode()
    return b"%d.%d:%b:%b" % (len(kind), len(name), kind, name)


def stored(value: Value) -> bytes:
    """A value as it is stored. ValueError when it is too large."""
    if len(value.data) > MAX_VALUE:
        raise ValueError(f"a value of {len(value.data):,} bytes: Redis takes at most 512 MB")
    kind = value.type_url.encode()
    return b"%d %b%b" % (len(kind), kind, value.data)


def restored(data: bytes) -> Value:
    """A value from what is stored."""
    length, _, rest = data.partition(b" ")
    size = int(length)
    return Value(rest[:size].decode(), rest[size:])
