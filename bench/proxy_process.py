"""The proxy as a process: how soon it is ready, and how much memory it holds idle and with 10,000 entities."""

from __future__ import annotations

import contextlib
import sys
import time
import urllib.error
import urllib.request
from typing import Any

import grpc

from bench.processes import resident_mb, running
from bench.scenarios import SERVER_CORE, UNARY, user_function
from kn_cloudstate.ports import free_port
from kn_cloudstate.results import Row

ENTITIES = 10_000


def _ready(port: int) -> bool:
    with contextlib.suppress(OSError, urllib.error.URLError):
        return bool(urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=1).status == 200)
    return False


def _activate(port: int) -> None:
    """One command to each of the entities."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call: Any = channel.unary_unary(UNARY)
        waiting = []
        for number in range(ENTITIES):
            key = f"entity-{number:06d}".encode()
            waiting.append(call.future(b"\n" + bytes([len(key)]) + key, timeout=60))
            if len(waiting) == 200:
                for future in waiting:
                    future.result()
                waiting.clear()
        for future in waiting:
            future.result()


def rows() -> list[Row]:
    """Start, idle memory, memory with many entities."""
    with user_function() as function:
        data, admin = free_port(), free_port()
        environment = {
            "CLOUDSTATE_USER_FUNCTION": f"127.0.0.1:{function}", "CLOUDSTATE_DATA_PORT": str(data), "CLOUDSTATE_PEER_PORT": "0",
            "CLOUDSTATE_ADMIN_PORT": str(admin), "CLOUDSTATE_JOURNAL": "memory:", "CLOUDSTATE_SERVICE": "bench/echo",
            "CLOUDSTATE_PASSIVATION_TIMEOUT": "10m",
        }  # fmt: skip
        begun = time.perf_counter()
        with running([sys.executable, "-m", "stateful_proxy"], SERVER_CORE, environment) as process:
            while not _ready(admin):
                if process.poll() is not None or time.perf_counter() - begun > 30:
                    raise RuntimeError("the proxy does not become ready")
                time.sleep(0.005)
            ready = time.perf_counter() - begun
            idle = resident_mb(process.pid)
            _activate(data)
            full = resident_mb(process.pid)
    return [
        Row("proxy: start to ready", ready, "s", bar=0.5),
        Row("proxy: memory when idle", idle, "MB", bar=60),
        Row(f"proxy: memory with {ENTITIES:,} active entities", full, "MB", bar=200),
    ]
