"""The models behind a real gRPC server, and who plays the proxy for them."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc.aio
import pytest
from cloudstate_sdk import Function

from tests.stateful_proxy.processes import BACKENDS
from tests.tck.sdk.crdt_function import CRDT_MODELS
from tests.tck.sdk.function import MODELS


@pytest.fixture(params=BACKENDS)
async def channel(request: pytest.FixtureRequest) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to the function with all models, on each transport."""
    server, port = await Function(*MODELS, *CRDT_MODELS).start("127.0.0.1", 0, request.param)
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel
    finally:
        await server.stop(None)
