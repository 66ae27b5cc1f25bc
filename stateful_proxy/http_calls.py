"""Requests that are not gRPC: HTTP/JSON and gRPC-Web for the same methods, CloudEvents, and Knative's network probe.

A request is told apart and made a message here, executed like any other command, and its answers are written back in the form it came in. A
request for an entity of another proxy is passed on whole, as it came.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from cloudstate_core.transport import api
from cloudstate_core.transport.api import Header, Status, Transport
from stateful_proxy.callers import Callers, Sink
from stateful_proxy.eventing.topics import Topics
from stateful_proxy.service import MethodInfo, ServiceModel
from stateful_proxy.transcoding import grpc_web
from stateful_proxy.transcoding.requests import BadRequest, message_of
from stateful_proxy.transcoding.responses import STATUS, TEXT, Response
from stateful_proxy.transcoding.rules import Route, Routes

PROBE = "k-network-probe"
PROBE_VALUE = b"queue"

Execute = Callable[[int, MethodInfo, bytes, tuple[bytes, ...]], None]
"""Execute a command for an HTTP call; `picked` = its routing headers."""


@dataclass(slots=True)
class _Request:
    """What came in. Never changed (and not frozen, which would make it dear)."""

    call: int
    verb: str
    path: str
    query: str
    content_type: str
    accept: str
    body: bytes
    picked: tuple[bytes, ...]
    """Values of the headers by which commands are routed."""


class HttpCalls:
    """HTTP requests of one proxy."""

    def __init__(
        self, transport: Transport, model: ServiceModel, callers: Callers, execute: Execute, cancel: Callable[[int], object], topics: Topics
    ) -> None:
        """`cancel` tells who executes a call that its answers are wanted no more."""
        self._transport, self._model, self._callers, self._topics = transport, model, callers, topics
        self._execute, self._cancel = execute, cancel
        self._routes = Routes(model.routes)
        self.requests = 0

    def begin(self, call: int, body: bytes, verb: str, target: str, picked: tuple[bytes, ...]) -> None:
        """Take one request."""
        self.requests += 1
        headers = {name: value.decode("latin-1") for name, value in self._transport.headers(call)}
        path, _, query = target.partition("?")
        request = _Request(call, verb.upper(), path, query, headers.get("content-type", ""), headers.get("accept", ""), body, picked)
        if media := grpc_web.media_of(request.content_type):
            self._grpc_web(request, media)
        elif (found := self._routes.find(request.verb, path)) is not None:
            self._transcode(request, *found)
        elif self._topics.wants(request.verb, path, headers):
            self._topics.take(call, path, headers, body, lambda status, text: self._told(call, status, text))
        else:
            self._unrouted(call, headers.get(PROBE))

    def _told(self, call: int, status: int, text: str) -> None:
        self._transport.respond(call, status, TEXT if text else [], text.encode())

    def _unrouted(self, call: int, probe: str | None) -> None:
        if probe is None:
            self._transport.respond(call, 404, [], b"")
        elif probe.encode("latin-1") == PROBE_VALUE:
            self._transport.respond(call, 200, TEXT, PROBE_VALUE)
        else:
            self._transport.respond(call, 400, TEXT, f"unexpected probe header value: {probe}".encode())

    # HTTP/JSON ----------------------------------------------------------------------------------------------------------

    def _transcode(self, request: _Request, route: Route, variables: dict[str, str]) -> None:
        method = self._model.methods[route.path]
        try:
            payload = message_of(route, variables, request.query, request.content_type, request.body)
        except BadRequest as error:
            self._transport.respond(request.call, 400, TEXT, str(error).encode(errors="backslashreplace"))
            return
        to = self._transport, request.call, Response(route, request.accept)
        form: Sink = _JsonStream(*to, self._cancel) if method.server_streaming else _Json(*to)
        self._begin(request, form, method, payload)

    # gRPC-Web -----------------------------------------------------------------------------------------------------------

    def _grpc_web(self, request: _Request, media: str) -> None:
        form = _GrpcWeb(self._transport, request.call, grpc_web.answer_type(media, request.accept))
        method = self._model.methods.get(request.path)
        if method is None:
            form.finish(Status.UNIMPLEMENTED, f"{request.path}: is not a method of this service", ())
            return
        try:
            messages = grpc_web.messages(media, request.body)
        except grpc_web.Malformed as error:
            form.finish(Status.INVALID_ARGUMENT, f"{request.path}: {error}", ())
            return
        if len(messages) != 1:
            form.finish(Status.INVALID_ARGUMENT, f"{request.path}: takes one message, not {len(messages)}", ())
            return
        self._begin(request, form, method, messages[0])

    def _begin(self, request: _Request, form: Sink, method: MethodInfo, payload: bytes) -> None:
        self._callers.attach(form, request.call)
        self._execute(request.call, method, payload, request.picked)


class _Json:
    """One JSON document, or an error with its status and bare description."""

    def __init__(self, transport: Transport, call: int, response: Response) -> None:
        self._transport, self._call, self._response = transport, call, response
        self._done = False

    def message(self, payload: bytes, headers: Sequence[Header]) -> None:
        """The answer."""
        if self._done:
            return
        self._done = True
        try:
            content_type, body = self._response.whole(payload)
        except (DecodeError, TypeError, ValueError) as error:
            text = f"the function's answer cannot be written as JSON: {error}"
            self._transport.respond(self._call, 500, TEXT, text.encode())
            return
        self._transport.respond(self._call, 200, [("content-type", content_type.encode()), *headers], body)

    def finish(self, status: int, text: str, trailers: Sequence[Header]) -> None:
        """The end; an error when there was no answer. A refusal stays one, for the proxy that passed the request on."""
        if self._done:
            return
        self._done = True
        if status == Status.OK:
            status, text = Status.UNKNOWN, "the function gave no answer for the caller"
        refused = [(name, value) for name, value in trailers if name == api.REFUSED_HEADER]
        self._transport.respond(self._call, STATUS.get(status, 500), [*TEXT, *refused], text.encode())


class _JsonStream:
    """One document a line, or server-sent events. What fails before the first answer has its status; later it ends the stream."""

    def __init__(self, transport: Transport, call: int, response: Response, cancel: Callable[[int], object]) -> None:
        self._transport, self._call, self._response, self._cancel = transport, call, response, cancel
        self._begun = self._done = False

    def message(self, payload: bytes, headers: Sequence[Header]) -> None:
        """One answer."""
        if self._done:
            return
        try:
            item = self._response.item(payload)
            if not self._begun:
                self._begin(payload, headers)
        except (DecodeError, TypeError, ValueError) as error:
            self.finish(Status.UNKNOWN, f"the function's answer cannot be written as JSON: {error}", ())
            self._cancel(self._call)  # nobody else will: the call has ended, and the function may go on for ever
            return
        self._transport.respond_data(self._call, item)

    def _begin(self, payload: bytes | None, headers: Sequence[Header]) -> None:
        content_type = self._response.begin(payload)
        self._begun = True
        self._transport.respond_begin(self._call, 200, [("content-type", content_type.encode()), *headers])

    def finish(self, status: int, text: str, trailers: Sequence[Header]) -> None:
        """The end; also when an answer could not be written, and then only the first one counts."""
        if self._done:
            return
        self._done = True
        if status != Status.OK and not self._begun:
            self._transport.respond(self._call, STATUS.get(status, 500), TEXT, text.encode())
            return
        if not self._begun:
            self._begin(None, ())
        if status != Status.OK:
            if not (told := self._response.error(status, text)):
                self._transport.limit(self._call, 0.0)  # cut: an end in good order would say that all went well
                return
            self._transport.respond_data(self._call, told)
        self._transport.respond_end(self._call)


class _GrpcWeb:
    """Frames of messages, then one of trailers."""

    def __init__(self, transport: Transport, call: int, media: str) -> None:
        self._transport, self._call, self._media = transport, call, media
        self._begun = False

    def message(self, payload: bytes, headers: Sequence[Header]) -> None:
        """One answer."""
        self._begin(headers)
        self._transport.respond_data(self._call, grpc_web.message_frame(self._media, payload))

    def _begin(self, headers: Sequence[Header]) -> None:
        if not self._begun:
            self._begun = True
            self._transport.respond_begin(self._call, 200, [("content-type", self._media.encode()), *headers])

    def finish(self, status: int, text: str, trailers: Sequence[Header]) -> None:
        """The end. A refusal is told by header too, for the proxy that passed the request on."""
        refused = [(name, value) for name, value in trailers if name == api.REFUSED_HEADER]
        if refused and not self._begun:
            self._transport.respond(self._call, STATUS.get(status, 500), [*TEXT, *refused], text.encode())
            return
        self._begin(())
        self._transport.respond_data(self._call, grpc_web.trailers_frame(self._media, status, text, trailers))
        self._transport.respond_end(self._call)
