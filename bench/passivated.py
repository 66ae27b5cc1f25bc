"""How much memory the proxy keeps of entities that have left it: none, whatever their number."""

from __future__ import annotations

import contextlib
import json
import pathlib
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import grpc

from bench.processes import resident_mb, running, wait_listening
from bench.scenarios import LOAD_CORE, SERVER_CORE, UNARY, user_function
from kn_cloudstate.ports import free_port
from kn_cloudstate.results import Row

WAVE, WARM_UP, ENTITIES, IN_FLIGHT = 10_000, 3, 100_000, 200
"""Entities come in waves, and each wave leaves before the next one comes: so many are in memory at most, before and after the first look.
`WARM_UP` in waves."""
PATIENCE = 60.0
"""Seconds until the last entity must have left."""
BAR = 10.0
"""MB: 100 bytes for each of them, less than its key with its place in a dictionary would take; the peaks of two runs differ by about 2."""


@contextlib.contextmanager
def journal() -> Iterator[str]:
    """An SQLite journal in a process of its own, so that what is stored is no memory of the proxy's; its address."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "kn_cloudstate.journal_host", str(pathlib.Path(folder) / "journal.db"), "bench/echo=256"]
        with running(command, LOAD_CORE, output=subprocess.PIPE) as process:
            assert process.stdout is not None
            word, address = process.stdout.readline().decode().split()
            if word != "listening":
                raise RuntimeError(f"the journal does not open: {word} {address}")
            yield f"remote:{address}"


def _use(port: int, first: int, count: int) -> None:
    """One command, with one event, to each of so many new entities."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call: Any = channel.unary_unary(UNARY)
        for begin in range(first, first + count, IN_FLIGHT):
            keys = [f"entity-{number:06d}".encode() for number in range(begin, min(begin + IN_FLIGHT, first + count))]
            for future in [call.future(b"\n" + bytes([len(key)]) + key, timeout=60) for key in keys]:
                future.result()


def _wait_empty(admin: int) -> None:
    """Return once no entity is in memory."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with urllib.request.urlopen(f"http://127.0.0.1:{admin}/entities", timeout=5) as answer:
            if json.load(answer)["active"] == 0:
                return
        time.sleep(0.1)
    raise RuntimeError(f"entities are still in memory after {PATIENCE:g} s")


def rows() -> list[Row]:
    """The highest of the looks after 100,000 more entities, over the highest while pools and caches grew to their size: the allocator
    gives memory back when it likes, so that single looks differ by 20 MB with no trend."""
    with user_function() as function, journal() as address:
        data, admin = free_port(), free_port()
        environment = {
            "CLOUDSTATE_USER_FUNCTION": f"127.0.0.1:{function}", "CLOUDSTATE_DATA_PORT": str(data), "CLOUDSTATE_PEER_PORT": "0",
            "CLOUDSTATE_ADMIN_PORT": str(admin), "CLOUDSTATE_JOURNAL": address, "CLOUDSTATE_SERVICE": "bench/echo",
            "CLOUDSTATE_PASSIVATION_TIMEOUT": "2s",
        }  # fmt: skip
        with running([sys.executable, "-m", "stateful_proxy"], SERVER_CORE, environment) as process:
            wait_listening(data, process)
            held = []
            for wave in range(WARM_UP + ENTITIES // WAVE):
                _use(data, wave * WAVE, WAVE)
                _wait_empty(admin)
                held.append(resident_mb(process.pid))
                print(f"  {(wave + 1) * WAVE:,} entities used and passivated: {held[-1]:.1f} MB", flush=True)
    return [Row(f"proxy: memory kept of {ENTITIES:,} passivated entities", max(held[WARM_UP:]) - max(held[:WARM_UP]), "MB", bar=BAR)]


if __name__ == "__main__":
    print(rows())
