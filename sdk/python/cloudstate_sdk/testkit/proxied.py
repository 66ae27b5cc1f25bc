"""A function under a real proxy, for tests of what only the two together do: routing by key, storing, forwards, effects, HTTP.

The function is served by the test's own event loop, the proxy is a process of its own with a journal in memory. It takes about half a
second to start: have tests share one where they can.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import pathlib
import random
import socket
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import grpc.aio
from google.protobuf import message_factory
from google.protobuf.message import Message

from cloudstate_sdk.definition import definition_of
from cloudstate_sdk.function import Function

PATIENCE = 60.0
"""Seconds that the proxy may take to start, to end, and to answer a call."""


class ProxyError(Exception):
    """The proxy is not installed, or does not serve the function; says why, and ends with the proxy's log."""


@dataclass(frozen=True, slots=True)
class Proxied:
    """A function that a proxy serves."""

    address: str
    """Of the proxy, host:port; gRPC, gRPC-Web and HTTP alike."""
    channel: grpc.aio.Channel
    """To the proxy."""
    function: Function

    @property
    def http(self) -> str:
        """The proxy's address as the beginning of a URL."""
        return f"http://{self.address}"

    async def call(self, component: type, method: str, request: Message, metadata: Mapping[str, str] | None = None) -> Any:
        """Call a method of one of the function's components as a client does; its reply. grpc.aio.AioRpcError when the call fails.

        Methods that stream are called on `channel`.
        """
        definition = definition_of(component)
        output = definition.descriptor.pool.FindServiceByName(definition.service).methods_by_name[method].output_type
        kinds = (type(request).SerializeToString, message_factory.GetMessageClass(output).FromString)
        call: Any = self.channel.unary_unary(f"/{definition.service}/{method}", *kinds)
        return await call(request, metadata=list((metadata or {}).items()), timeout=PATIENCE)


@contextlib.asynccontextmanager
async def proxied(*components: type, settings: Mapping[str, str] | None = None) -> AsyncIterator[Proxied]:
    """`async with proxied(Cart) as running`: the components behind a proxy that is ready; both end with the block.

    `settings` are further environment variables of the proxy, such as CLOUDSTATE_PASSIVATION_TIMEOUT or CLOUDSTATE_JOURNAL. ProxyError when the proxy
    is not installed, or finds the function wrong.
    """
    place, function, data, admin = _installed(), Function(*components), _free_port(), _free_port()
    with tempfile.TemporaryFile() as log:
        async with contextlib.AsyncExitStack() as stack:
            server, port = await function.start("127.0.0.1", 0)
            stack.push_async_callback(server.stop, None)
            ports = {"USER_FUNCTION": f"127.0.0.1:{port}", "DATA_PORT": str(data), "ADMIN_PORT": str(admin), "PEER_PORT": "0"}
            environment = {**_environment(place), **{f"CLOUDSTATE_{name}": value for name, value in ports.items()}, **(settings or {})}
            process = await asyncio.create_subprocess_exec(sys.executable, "-m", "stateful_proxy", env=environment, stdout=log, stderr=log)
            stack.push_async_callback(_end, process)
            if problem := await _ready(process, admin, function):
                log.seek(0)
                raise ProxyError("\n".join([problem, log.read().decode(errors="replace")]).rstrip())
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{data}"))
            yield Proxied(f"127.0.0.1:{data}", channel, function)


def _environment(place: pathlib.Path) -> dict[str, str]:
    """This process's, but for what is meant for another proxy; modules of `place` are found first."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CLOUDSTATE_")}
    return {**kept, "PYTHONPATH": os.pathsep.join(filter(None, [str(place), kept.get("PYTHONPATH", "")]))}


def _installed() -> pathlib.Path:
    """The folder that the proxy's package is in."""
    found = importlib.util.find_spec("stateful_proxy")
    if found is None or found.origin is None:
        raise ProxyError("the proxy is not installed; it comes with `pip install cloudstate-sdk[proxy]`")
    return pathlib.Path(found.origin).parent.parent


async def _ready(process: asyncio.subprocess.Process, admin: int, function: Function) -> str:
    """Wait until the proxy is ready; why it never will be, '' when it is."""
    deadline, says = asyncio.get_running_loop().time() + PATIENCE, ""
    while asyncio.get_running_loop().time() < deadline:
        if process.returncode is not None:
            return f"the proxy has ended with exit code {process.returncode}"
        if function.reports:
            return f"the proxy does not serve this function: {function.reports[-1]}"
        status, says = await asyncio.to_thread(_page, f"http://127.0.0.1:{admin}/ready")
        if status == 200:
            return ""
        await asyncio.sleep(0.02)
    return f"the proxy is not ready after {PATIENCE:g} s: {says}"


def _page(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError as error:
        return 0, str(error)


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        async with asyncio.timeout(PATIENCE):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


def _free_port() -> int:
    """A TCP port that nobody listens on, from below those that outgoing connections take."""
    while True:
        port = random.randrange(10_000, 32_000)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
