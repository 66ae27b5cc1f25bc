"""gRPC-Web's frames, binary and text."""

from __future__ import annotations

import base64
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stateful_proxy.transcoding import grpc_web
from stateful_proxy.transcoding.grpc_web import Malformed

MEDIA = ["application/grpc-web", "application/grpc-web+proto", "application/grpc-web-text", "application/grpc-web-text+proto"]


@given(media=st.sampled_from(MEDIA), sent=st.lists(st.binary(max_size=100), max_size=4))
def test_messages_come_through_in_frames_of_their_own(media: str, sent: list[bytes]) -> None:
    body = b"".join(grpc_web.message_frame(media, message) for message in sent)
    assert grpc_web.messages(media, body + grpc_web.trailers_frame(media, 0, "")) == sent


@given(media=st.sampled_from(MEDIA), body=st.binary())
def test_nothing_but_malformed_is_raised(media: str, body: bytes) -> None:
    with contextlib.suppress(Malformed):
        grpc_web.messages(media, body)


def test_trailers() -> None:
    frame = grpc_web.trailers_frame(MEDIA[0], 5, "nicht da: ä%\r\n", [("x-raw-bin", b"\x01"), ("x-text", b"t")])
    assert frame[0] == 0x80
    assert int.from_bytes(frame[1:5], "big") == len(frame) - 5
    assert frame[5:] == b"grpc-status:5\r\ngrpc-message:nicht da: %C3%A4%25%0D%0A\r\nx-raw-bin:AQ\r\nx-text:t\r\n"
    assert base64.b64decode(grpc_web.trailers_frame(MEDIA[2], 5, "")) == grpc_web.trailers_frame(MEDIA[0], 5, "")


@pytest.mark.parametrize(
    ("content_type", "media"),
    [(media, media) for media in MEDIA]
    + [("Application/gRPC-Web; charset=utf-8", MEDIA[0]), ("application/grpc", ""), ("application/grpc-webx", ""), ("application/json", "")],
)
def test_content_types(content_type: str, media: str) -> None:
    assert grpc_web.media_of(content_type) == media


def test_the_answer_is_text_when_that_is_asked_for() -> None:
    assert grpc_web.answer_type(MEDIA[0], MEDIA[2]) == MEDIA[2]
    assert grpc_web.answer_type(MEDIA[2], "*/*") == MEDIA[2]


@pytest.mark.parametrize(("body", "text"), [(b"\0\0", "head"), (b"\0\0\0\0\x05ab", "not whole"), (b"\x01\0\0\0\0", "compressed")])
def test_what_is_not_whole_is_said(body: bytes, text: str) -> None:
    with pytest.raises(Malformed) as error:
        grpc_web.messages(MEDIA[0], body)
    assert text in str(error.value)
