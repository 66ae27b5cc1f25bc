"""One real proxy for all cases, in front of a function that serves every conformance model; all of it once on each store of one machine."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.tck.client import Client
from tests.tck.scripted import ScriptedFunction
from tests.tck.worlds import World, started

_numbers = itertools.count(1)


@pytest_asyncio.fixture(scope="session", loop_scope="session", params=["memory", "sqlite"])
async def shared_world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """A world for all cases, on one store."""
    folder = tmp_path_factory.mktemp("tck")
    async with started(folder, "memory:" if request.param == "memory" else f"sqlite:{folder / 'journal.db'}") as world:
        yield world


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
