"""The shopping cart as a running user function, and its messages."""

from __future__ import annotations

import contextlib
import pathlib
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc.aio
import pytest

from tests.stateful_proxy.processes import BACKENDS

SAMPLE = pathlib.Path(__file__).resolve().parent.parent.parent / "samples/shopping-cart"


@pytest.fixture(scope="session")
def sample() -> Any:
    """The sample's module `cart`, with its messages as `api` and `domain`."""
    sys.path.insert(0, str(SAMPLE))
    try:
        import cart
    finally:
        sys.path.remove(str(SAMPLE))
    return cart


@pytest.fixture(params=BACKENDS)
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What functions are served on, unless they say otherwise."""
    monkeypatch.setenv("CLOUDSTATE_SDK_TRANSPORT", request.param)
    return str(request.param)


@pytest.fixture
def serving(transport: str) -> Callable[..., Any]:
    """`async with serving(Entity) as channel`: the entity classes behind a real gRPC server."""

    @contextlib.asynccontextmanager
    async def serve(*entities: type) -> AsyncIterator[grpc.aio.Channel]:
        from cloudstate_sdk import Function

        server, port = await Function(*entities).start("127.0.0.1", 0)
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                yield channel
        finally:
            await server.stop(None)

    return serve
