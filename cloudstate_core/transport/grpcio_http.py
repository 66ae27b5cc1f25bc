"""Plain HTTP/1.1 for `http_only` ports of the grpcio backend: small requests, answers whole or piece by piece, connections kept open."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import http
import socket
from collections.abc import Callable, Sequence

from cloudstate_core.transport import grpcio_wire
from cloudstate_core.transport.api import MOST_WAITING, Header, ListenOptions

_WATCH = 0.2
"""Seconds between looks whether a caller that waits for its answer is still there."""


class BadRequest(Exception):
    """A request that is answered with `status` and never told to policy."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class HttpRequest:
    """One request; `respond` answers it once, `begin`, `send` and `end` piece by piece."""

    def __init__(self, method: str, target: str, version: str, headers: list[Header], body: bytes) -> None:
        self.method, self.target, self.headers, self.body = method, target, headers, body
        self.persistent = version != "HTTP/1.0" and self.header("connection").lower() != b"close"
        self.call = 0
        self.why = "the caller is gone"
        """What policy is told when the answer is not read to its end."""
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        """The whole answer, or the head of one that has begun."""
        self.body_follows = False
        self._chunked = False
        self._pieces: collections.deque[bytes] = collections.deque()
        self.waiting = 0
        """Bytes that wait for the caller."""
        self.on_drained: Callable[[], None] | None = None
        """Called once there are none."""
        self._ended = False
        self._more = asyncio.Event()
        self.cut: Callable[[], None] = lambda: None
        """Ends the connection."""

    def header(self, name: str) -> bytes:
        """Value of a header, b'' when absent; `:authority` is the Host."""
        wanted = "host" if name == ":authority" else name
        return next((value for key, value in reversed(self.headers) if key == wanted), b"")

    def respond(self, status: int, headers: Sequence[Header], body: bytes) -> None:
        """Answer whole."""
        if not self.answer.done():
            self.answer.set_result(_whole(status, headers, b"" if self.method == "HEAD" else body, len(body)))

    def begin(self, status: int, headers: Sequence[Header]) -> None:
        """Answer piece by piece; where there is no body, nobody reads the pieces."""
        if self.answer.done():
            return
        self.body_follows = self.method != "HEAD" and status not in (204, 304)
        if not self.body_follows:
            self.why = "the answer has no body"
        elif all(name != "content-length" for name, _ in headers):
            self._chunked = self.persistent
            headers = [*headers, ("transfer-encoding", b"chunked") if self._chunked else ("connection", b"close")]
        self.answer.set_result(_head(status, headers))

    def send(self, data: bytes) -> None:
        """A further piece; with more than MOST_WAITING bytes the answer is cut."""
        if not data or not self.body_follows:
            return
        piece = b"%x\r\n%s\r\n" % (len(data), data) if self._chunked else data
        self.waiting += len(piece)
        self._pieces.append(piece)
        self._more.set()
        if self.waiting > MOST_WAITING:
            self._pieces.clear()
            self.why = "the caller reads too slowly"
            self.cut()

    def end(self) -> None:
        """The answer is whole."""
        if self._chunked and not self._ended:
            self._pieces.append(b"0\r\n\r\n")
        self._ended = True
        self._more.set()

    async def piece(self, patience: float) -> bytes | None:
        """The next piece as it is written, b"" when none has come in time, None at the end."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                while not self._pieces and not self._ended:
                    self._more.clear()
                    await self._more.wait()
        if not self._pieces:
            return None if self._ended else b""
        return self._pieces.popleft()

    def written(self, piece: bytes) -> None:
        """A piece has gone out."""
        self.waiting -= len(piece)
        if not self._pieces and not self._ended and self.on_drained is not None:
            drained, self.on_drained = self.on_drained, None
            drained()


class HttpListener:
    """A bound port; `on_request` is called on the loop with each request, `on_gone` when its caller leaves before the answer."""

    def __init__(
        self,
        host: str,
        port: int,
        options: ListenOptions,
        on_request: Callable[[HttpRequest], None],
        on_gone: Callable[[HttpRequest], None],
    ) -> None:
        self._options, self._on_request, self._on_gone = options, on_request, on_gone
        self._server: asyncio.Server | None = None
        self._socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((host, port))
            self._socket.listen()
        except OSError as error:
            self._socket.close()
            raise OSError(error.errno, f"cannot listen on {host}:{port}: {error.strerror}") from error
        self.port: int = self._socket.getsockname()[1]

    async def start(self) -> None:
        """Accept connections."""
        self._server = await asyncio.start_server(self._serve, sock=self._socket, limit=self._options.max_header_bytes)

    async def stop(self) -> None:
        """Accept no more."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            try:
                while (request := await _read(reader, self._options.max_message_bytes)) is not None:
                    self._on_request(request)
                    if not await self._answered(request, reader, writer):
                        break
            except BadRequest as error:
                text = f"{error}\n".encode()
                writer.write(_whole(error.status, [("content-type", b"text/plain"), ("connection", b"close")], text, len(text)))
                await writer.drain()
        writer.close()

    async def _answered(self, request: HttpRequest, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Write the answer as policy gives it; False when the connection ends with it."""
        request.cut = writer.transport.abort
        try:
            while not (await asyncio.wait({request.answer}, timeout=_WATCH))[0]:
                if reader.at_eof() or writer.is_closing():
                    return False
            writer.write(request.answer.result())
            while request.body_follows and (piece := await request.piece(_WATCH)) is not None:
                if reader.at_eof() or writer.is_closing():
                    return False
                writer.write(piece)
                await writer.drain()
                request.written(piece)
            await writer.drain()
        finally:
            self._on_gone(request)
        return request.persistent


def _whole(status: int, headers: Sequence[Header], body: bytes, length: int) -> bytes:
    return _head(status, [*headers, ("content-length", str(length).encode())]) + body


def _head(status: int, headers: Sequence[Header]) -> bytes:
    phrase = http.HTTPStatus(status).phrase if status in http.HTTPStatus._value2member_map_ else ""
    lines = [f"HTTP/1.1 {status} {phrase}".encode(), *(name.encode() + b": " + value for name, value in headers)]
    return b"\r\n".join(lines) + b"\r\n\r\n"


async def _read(reader: asyncio.StreamReader, max_body: int) -> HttpRequest | None:
    """The next request, or None at the end of the connection."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    except asyncio.IncompleteReadError:
        return None
    except asyncio.LimitOverrunError as error:
        raise BadRequest(431, "the request's headers are over the limit") from error
    parts = head[0].split(" ")
    if len(parts) != 3 or not parts[2].startswith("HTTP/1."):
        raise BadRequest(400, "the request line must be METHOD TARGET HTTP/1.1")
    headers = [grpcio_wire.plain_header(line) for line in head[1:] if line]
    if any(key == "transfer-encoding" for key, _ in headers):
        raise BadRequest(411, "an admin request needs a content-length")
    lengths = {value for key, value in headers if key == "content-length"} or {b"0"}
    length = lengths.pop()
    if lengths or not length.isdigit():
        raise BadRequest(400, "content-length must be one decimal number")
    if int(length) > max_body:
        raise BadRequest(413, f"a body of {int(length)} bytes is over the limit of {max_body}")
    return HttpRequest(parts[0], parts[1], parts[2], headers, await reader.readexactly(int(length)))
