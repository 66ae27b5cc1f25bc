"""The forms in which HTTP callers get their answers, where the function does not keep its word."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from google.api import httpbody_pb2

from cloudstate_core.transport import api
from cloudstate_core.transport.api import Header, Status
from stateful_proxy.http_calls import _JsonStream
from stateful_proxy.transcoding.responses import Response
from tests.stateful_proxy.dispatching import STREAMED, Bench
from tests.stateful_proxy.transcoding.world import routes


class Http:
    """Records one HTTP answer."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.body = b""
        self.ends: list[str] = []

    def respond(self, call: int, status: int, headers: list[Header], body: bytes) -> None:
        self.begun.append(status)
        self.body, self.ends = body, [*self.ends, "whole"]

    def respond_begin(self, call: int, status: int, headers: list[Header]) -> None:
        self.begun.append(status)

    def respond_data(self, call: int, data: bytes) -> None:
        self.body += data

    def respond_end(self, call: int) -> None:
        self.ends.append("end")

    def limit(self, call: int, seconds: float) -> None:
        self.ends.append("cut")


GOOD, UNREADABLE = b"", b"\xff"
BAD_TYPE = httpbody_pb2.HttpBody(content_type="a\nb").SerializeToString()


@pytest.mark.parametrize(
    ("output_type", "answers", "status", "end"),
    [
        (".t.All", [UNREADABLE, GOOD], 500, "whole"),
        (".t.All", [GOOD, UNREADABLE, GOOD], 200, "cut"),
        (".google.api.HttpBody", [BAD_TYPE, GOOD], 500, "whole"),
        (".t.All", [GOOD, GOOD], 200, "end"),
    ],
)
def test_a_stream_ends_once_where_an_answer_cannot_be_written(output_type: str, answers: list[bytes], status: int, end: str) -> None:
    [of] = routes(output_type=output_type)
    http: Any = Http()
    given_up: list[int] = []
    stream = _JsonStream(http, 1, Response(of, ""), given_up.append)
    for answer in answers:
        stream.message(answer, ())
    before = http.body
    stream.finish(Status.OK, "", ())
    assert (http.begun, http.ends, http.body) == ([status], [end], before)
    assert given_up == ([] if end == "end" else [1]), "the function would stream on for ever"


def test_the_function_hears_that_its_answers_are_wanted_no_more() -> None:
    bench, http = Bench(routes=routes(get="/all")), Http()
    around: Any = bench.around
    around.respond = http.respond
    around.methods["/t.S/Do"] = replace(STREAMED, path="/t.S/Do", client_streaming=False, server_streaming=True)
    bench.dispatch.on_event((api.HTTP, 7, b"", ("GET", "/all", (b"", b"", b""))))
    bench.callers.message(7, UNREADABLE)
    assert http.ends == ["whole"]
    assert around.left == {7}
