"""Plain HTTP/1.1 for admin ports of the grpcio backend: small requests, whole answers, connections kept open."""

from __future__ import annotations

import asyncio
import contextlib
import http
import socket
from collections.abc import Callable, Sequence

from cloudstate_core.transport.api import Header

MAX_BODY = 1 << 20


class HttpRequest:
    """One request; `respond` answers it once."""

    def __init__(self, method: str, target: str, headers: list[Header], body: bytes) -> None:
        self.method, self.target, self.headers, self.body = method, target, headers, body
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def header(self, name: str) -> bytes:
        """Value of a header, b'' when absent; `:authority` is the Host."""
        wanted = "host" if name == ":authority" else name
        return next((value for key, value in self.headers if key == wanted), b"")

    def respond(self, status: int, headers: Sequence[Header], body: bytes) -> None:
        """Answer whole."""
        lines = [f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}".encode()]
        lines += [name.encode() + b": " + value for name, value in headers]
        lines.append(b"content-length: " + str(len(body)).encode())
        if not self.answer.done():
            self.answer.set_result(b"\r\n".join(lines) + b"\r\n\r\n" + body)


class HttpListener:
    """A bound port; `on_request` is called on the loop with each request."""

    def __init__(self, host: str, port: int, on_request: Callable[[HttpRequest], None]) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((host, port))
        except OSError as error:
            self._socket.close()
            raise OSError(error.errno, f"cannot listen on {host}:{port}: {error.strerror}") from error
        self.port: int = self._socket.getsockname()[1]
        self._on_request = on_request
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Accept connections."""
        self._server = await asyncio.start_server(self._serve, sock=self._socket)

    async def stop(self, grace: float | None) -> None:
        """Accept no more."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            while (request := await _read(reader)) is not None:
                self._on_request(request)
                writer.write(await request.answer)
                await writer.drain()
        writer.close()


async def _read(reader: asyncio.StreamReader) -> HttpRequest | None:
    """The next request, or None at the end of the connection."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    except asyncio.IncompleteReadError:
        return None
    method, target, _ = head[0].split(" ", 2)
    headers = [(k.strip().lower(), v.strip().encode("latin-1")) for k, _, v in (line.partition(":") for line in head[1:] if line)]
    length = int(next((value for key, value in headers if key == "content-length"), b"0"))
    if length > MAX_BODY:
        raise ValueError(f"a body of {length} bytes is over the limit of {MAX_BODY}")
    return HttpRequest(method, target, headers, await reader.readexactly(length))
