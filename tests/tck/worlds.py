"""A real proxy between a scripted function and a client."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pathlib
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from kn_cloudstate.ports import free_port
from tests.stateful_proxy.processes import ProxyProcess
from tests.tck import models
from tests.tck.client import Client
from tests.tck.scripted import ScriptedFunction

LONG = {"CLOUDSTATE_PASSIVATION_TIMEOUT": "1h"}
"""No entity leaves memory in the middle of a case, unless its own time is shorter: see models.PASSIVATION."""
ABANDONED = "cloudstate_calls_abandoned_total"
"""Figure of a proxy: calls whose callers left before their answer."""


@dataclass(frozen=True)
class World:
    """The function, the proxy behind which it stands, and a client before it."""

    function: ScriptedFunction
    client: Client
    proxy: ProxyProcess
    log: pathlib.Path


@contextlib.asynccontextmanager
async def started(folder: pathlib.Path, journal: str = "memory:", steady: bool = True, **environment: str) -> AsyncIterator[World]:
    """A world of its own; see ScriptedFunction for `steady`. Its proxy logs to a file in the folder."""
    if importlib.util.find_spec("cloudstate_engine") is None and not os.environ.get("CI"):
        pytest.skip("no wheel of the engine")
    function = ScriptedFunction(models.spec(), free_port(), steady)
    await function.start()
    proxy = ProxyProcess(function.port, "native", **{"CLOUDSTATE_JOURNAL": journal, **LONG, **environment})
    client, log = Client(proxy.data), folder / "proxy.log"
    try:
        with log.open("wb") as output:
            await proxy.spawn(stderr=output)
        await proxy.ready()
        yield World(function, client, proxy, log)
        await client.close()
        await proxy.channel.close()
    finally:
        await proxy.end(signal.SIGKILL)
        await function.stop()
