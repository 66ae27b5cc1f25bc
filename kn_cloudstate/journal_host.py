"""The one opener of the local SQLite journal: a process that serves it to the pods over gRPC.

Prints `listening HOST:PORT` once the file and the keyspaces that it was told of are open; ends on SIGTERM after everything submitted is
durable. A file that cannot be used ends it at once, before any pod relies on it; why is the first line then (`error: …`), since a log on the
same full disk could not tell it.
"""

from __future__ import annotations

import argparse
import asyncio
import pathlib
import signal
import sys
from collections.abc import Mapping

from cloudstate_core.journal.api import Journal, JournalError
from cloudstate_core.journal.server import JournalServer
from cloudstate_core.journal.sqlite import SqliteJournal


async def serve(path: pathlib.Path, keyspaces: Mapping[str, int]) -> None:
    """Serve until SIGTERM or SIGINT; `keyspaces` (name and shard count) are opened first. JournalError when one cannot be."""

    def open_keyspace(keyspace: str, shard_count: int) -> Journal:
        return SqliteJournal(str(path), keyspace, shard_count)

    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    server = JournalServer(open_keyspace)
    for keyspace, shard_count in keyspaces.items():
        server.open(keyspace, shard_count)
    port = await server.start("127.0.0.1", 0)
    print(f"listening 127.0.0.1:{port}", flush=True)
    await stopped.wait()
    await server.stop()


def main() -> int:
    """Entry point of the process."""
    parser = argparse.ArgumentParser(description="Serve an SQLite journal to the pods of this machine.")
    parser.add_argument("path", type=pathlib.Path)
    parser.add_argument("keyspaces", nargs="*", metavar="NAME=SHARDS")
    options = parser.parse_args()
    keyspaces = {name: int(shards) for name, _, shards in (keyspace.rpartition("=") for keyspace in options.keyspaces)}
    try:
        asyncio.run(serve(options.path, keyspaces))
    except JournalError as error:
        print(f"error: {error}", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
