"""How a function is served: on the native engine where it is installed, else on grpcio's server. Both promise the same; the engine is faster."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Protocol

import grpc
import grpc.aio

TRANSPORT = "CLOUDSTATE_SDK_TRANSPORT"
"""Environment variable that chooses when no argument does."""
MAX_PENDING = 100_000
"""Streams that may wait to be taken. From 1,000 on (its default) grpc's core rejects some at random, and a proxy wakes many entities at once."""
OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.so_reuseport", 0),
    ("grpc.server.max_pending_requests", MAX_PENDING),
    ("grpc.server.max_pending_requests_hard_limit", MAX_PENDING),
]
Methods = Mapping[str, Any]
"""grpc's handlers by path."""


class Server(Protocol):
    """A function that is being served."""

    async def stop(self, grace: float | None) -> None:
        """Take no more calls, and end those that are still open after `grace` seconds, at once when it is None."""


async def start(methods: Methods, host: str, port: int, transport: str = "") -> tuple[Server, int]:
    """Serve; the server and its port. `transport` is `native`, `grpcio` or `auto`, which is also what '' stands for unless the environment says.

    OSError when the port is taken, ImportError when the engine is asked for and not installed, ValueError for another transport.
    """
    wanted = transport or os.environ.get(TRANSPORT, "auto")
    if wanted not in ("auto", "native", "grpcio"):
        raise ValueError(f"{'transport' if transport else TRANSPORT}={wanted!r}: must be auto, native or grpcio")
    if wanted != "grpcio":
        try:
            from cloudstate_sdk.native import NativeServer
        except ImportError as error:
            if wanted == "native":
                raise ImportError("the native engine is not installed; it comes with `pip install cloudstate-sdk[engine]`") from error
        else:
            native = NativeServer(methods)
            return native, native.start(host, port)
    return await _start_grpcio(methods, host, port)


async def _start_grpcio(methods: Methods, host: str, port: int) -> tuple[Server, int]:
    server = grpc.aio.server(options=OPTIONS)
    services: dict[str, dict[str, Any]] = {}
    for path, method in methods.items():
        service, name = path.lstrip("/").rsplit("/", 1)
        services.setdefault(service, {})[name] = method
    server.add_generic_rpc_handlers(tuple(grpc.method_handlers_generic_handler(*service) for service in services.items()))
    try:
        bound = server.add_insecure_port(f"{host}:{port}")
    except RuntimeError as error:
        raise OSError(f"{host}:{port}: {error}") from error
    await server.start()
    return server, bound
