"""The layout of a keyspace in Redis: made once, together with the fences; compared whenever a server is connected to again.

A store that came back empty, or with another keyspace of the same name, is told by its journal id.
"""

from __future__ import annotations

import secrets

from cloudstate_core.hashing import HASH_NAME
from cloudstate_core.journal.api import Incompatible, JournalError, Layout
from cloudstate_core.journal.redis_calls import explained
from cloudstate_core.journal.redis_format import SCRIPTS, Names, open_script, packed
from cloudstate_core.journal.redis_link import Answer, Link, Unfit

FORMAT = 1
_FIELDS = ("journal", "shards", "hash", "format")
_PASSING = ("LOADING", "MASTERDOWN", "READONLY", "OOM", "BUSY", "MISCONF", "NOREPLICAS")


async def open_layout(link: Link, where: str, names: Names, shard_count: int, known: Layout | None) -> Layout:
    """The keyspace's layout, and the scripts loaded. `known`: what it was when it was opened first; None makes a keyspace that is new.

    Unfit: not now; Incompatible: it has another layout than asked for; JournalError: its data are gone, or others.
    """
    if known is None:
        fences = [names.fence(shard) for shard in range(shard_count)]
        wanted = (secrets.token_hex(8), str(shard_count), HASH_NAME, str(FORMAT))
        question = open_script.call([names.layout, *fences], [*map(str.encode, wanted), secrets.token_bytes(8 * shard_count)])
    else:
        question = packed(b"HMGET", names.layout, *map(str.encode, _FIELDS))
    *_, answer = await link.exchange([*(script.load() for script in SCRIPTS), question], len(SCRIPTS) + 1)
    return _agreed(where, _told(where, answer), known, shard_count)


def _told(where: str, answer: Answer) -> Layout | None:
    """The layout as the server told it; None when there is none."""
    if isinstance(answer, str):
        kind = Unfit if answer.startswith(_PASSING) else JournalError
        raise kind(f"{where}: cannot be opened: {explained(answer)}")
    if not answer or answer[0] is None:
        return None
    journal, shards, name, form = (part.decode() for part in answer)
    return Layout(journal, int(shards), name, int(form))


def _agreed(where: str, found: Layout | None, known: Layout | None, shard_count: int) -> Layout:
    if known is not None and found != known:
        now = f"is now {found.journal_id}" if found else "is empty now"
        raise JournalError(f"{where}: was {known.journal_id} and {now}: a store that came back without its data is not written to")
    if found is None:
        raise JournalError(f"{where}: has shards but no layout: it lost part of its data")
    if (found.shard_count, found.hash, found.format) != (shard_count, HASH_NAME, FORMAT):
        raise Incompatible(
            f"{where}: has {found.shard_count} shards, hash {found.hash}, format {found.format}; "
            f"asked for {shard_count}, {HASH_NAME}, {FORMAT}: the layout of a keyspace never changes"
        )
    return found
