"""One real proxy for all cases, in front of a function that serves every conformance model; all of it once on each store of one machine."""

from __future__ import annotations

import importlib.util
import itertools
import pathlib
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio

from kn_cloudstate.ports import free_port
from tests.stateful_proxy.processes import ProxyProcess
from tests.tck import models
from tests.tck.client import Client
from tests.tck.scripted import ScriptedFunction

STORES = ["memory", "sqlite"]
_numbers = itertools.count(1)


@dataclass(frozen=True)
class World:
    """The function, the proxy behind which it stands, and a client before it."""

    function: ScriptedFunction
    client: Client
    proxy: ProxyProcess


@pytest_asyncio.fixture(scope="session", loop_scope="session", params=STORES)
async def shared_world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """A proxy on one store."""
    if importlib.util.find_spec("cloudstate_engine") is None:
        pytest.skip("no wheel of the engine")
    stores = {"memory": "memory:", "sqlite": f"sqlite:{journal_file(tmp_path_factory)}"}
    function = ScriptedFunction(models.spec(), free_port())
    await function.start()
    proxy = ProxyProcess(function.port, "native", CLOUDSTATE_JOURNAL=stores[request.param])
    client = Client(proxy.data)
    try:
        await proxy.start()
        yield World(function, client, proxy)
        await client.close()
    finally:
        await proxy.channel.close()
        await proxy.end(signal.SIGKILL)
        await function.stop()


def journal_file(folders: pytest.TempPathFactory) -> pathlib.Path:
    """Where a SQLite journal may be made."""
    return folders.mktemp("tck") / "journal.db"


@pytest_asyncio.fixture(loop_scope="session")
async def world(shared_world: World) -> AsyncIterator[World]:
    """The same for one case, after which nothing may appear that the case did not ask for."""
    await shared_world.function.forget()
    yield shared_world
    await shared_world.function.expect_silence()


@pytest.fixture
def function(world: World) -> ScriptedFunction:
    """The user function."""
    return world.function


@pytest.fixture
def client(world: World) -> Client:
    """A client of the public port."""
    return world.client


@pytest.fixture
def key() -> str:
    """An entity that no case has used; entities of several services have it, and a colon is nothing special."""
    return f"entity:{next(_numbers)}"
