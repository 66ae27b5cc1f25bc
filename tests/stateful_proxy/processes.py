"""The proxy as a child process, for tests that need the real one."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import pathlib
import signal
import sys
import time
import urllib.error
import urllib.request
from typing import Any

import grpc.aio
import pytest

from autoscaler.placement.service import ServicePlacement
from kn_cloudstate.ports import free_port

ROOT = pathlib.Path(__file__).resolve().parents[2]
SERVICE = "com.example.shoppingcart.ShoppingCart"
NAME = "test/cart"
SHARDS = 32
PATIENCE = 60.0
WITHOUT = importlib.util.find_spec("cloudstate_engine") is None and not os.environ.get("CI")
"""The engine was not built here, which is fine anywhere but where everything is checked."""
BACKENDS = ["grpcio", pytest.param("native", marks=pytest.mark.skipif(WITHOUT, reason="no wheel"))]


async def until(condition: Any, what: str) -> None:
    """Wait on state, with a generous limit."""
    deadline = time.monotonic() + PATIENCE
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < deadline, f"after {PATIENCE:g} s still not: {what}"
        await asyncio.sleep(0.02)


class ProxyProcess:
    """One proxy as a child process."""

    def __init__(self, function: int, backend: str, **environment: str) -> None:
        self.data, self.admin = free_port(), free_port()
        self.environment = {
            "CLOUDSTATE_USER_FUNCTION": f"127.0.0.1:{function}", "CLOUDSTATE_DATA_PORT": str(self.data), "CLOUDSTATE_PEER_PORT": "0",
            "CLOUDSTATE_ADMIN_PORT": str(self.admin), "CLOUDSTATE_SERVICE": NAME, "CLOUDSTATE_SHARDS": str(SHARDS),
            "CLOUDSTATE_TRANSPORT": backend, "PYTHONPATH": str(ROOT), **environment,
        }  # fmt: skip

    async def spawn(self, **options: Any) -> ProxyProcess:
        """Start it; its admin port may not answer yet."""
        command, environment = [sys.executable, "-m", "stateful_proxy"], {**os.environ, **self.environment}
        self.process = await asyncio.create_subprocess_exec(*command, env=environment, **options)
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{self.data}", options=[("grpc.max_reconnect_backoff_ms", 200)])
        return self

    async def start(self) -> ProxyProcess:
        """Start it, and wait until it is ready."""
        await self.spawn()
        await self.ready()
        return self

    async def ready(self, status: int = 200, says: str = "") -> str:
        """Wait for an answer of /ready; its text."""
        found = (0, "")

        def right() -> bool:
            nonlocal found
            found = self.page("/ready")
            return found[0] == status and says in found[1]

        try:
            await until(right, "so at /ready")
        except AssertionError as error:
            raise AssertionError(f"{error}: {found}") from None
        return found[1]

    def page(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}{path}", timeout=PATIENCE) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    def owned(self) -> dict[str, int]:
        status, text = self.page("/shards")
        return dict(json.loads(text)["owned"]) if status == 200 else {}

    async def call(self, method: str, request: bytes, **metadata: str) -> bytes:
        headers = [(name.replace("_", "-"), value) for name, value in metadata.items()]
        call: Any = self.channel.unary_unary(f"/{SERVICE}/{method}")
        return bytes(await call(request, timeout=PATIENCE, metadata=headers))

    def figure(self, name: str) -> float:
        """A figure of the metrics page."""
        found = next(line for line in self.page("/metrics")[1].splitlines() if line.startswith(f"{name} "))
        return float(found.split()[1])

    async def end(self, number: int = signal.SIGTERM) -> int:
        if self.process.returncode is None:
            self.process.send_signal(number)
        return await asyncio.wait_for(self.process.wait(), PATIENCE)


async def shared(placement: ServicePlacement, *proxies: ProxyProcess) -> None:
    """Wait until the proxies have every shard among them, about as many each, and none moves: who calls while one moves may have to call again."""

    def so() -> bool:
        owned = [set(proxy.owned()) for proxy in proxies]
        moving = any(entry.next for entry in placement.map.entries)
        return not moving and len(set().union(*owned)) == SHARDS == sum(map(len, owned)) and min(map(len, owned)) >= SHARDS // len(proxies) - 4

    await until(so, "they share the shards")
