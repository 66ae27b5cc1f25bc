"""The conformance suite's model cases of actions, under its names."""

from __future__ import annotations

from typing import Any

import grpc.aio
import pytest
from cloudstate_sdk.pb.cloudstate import entity_pb2

from tests.tck.pb.cloudstate.tck.model import action_pb2 as actions
from tests.tck.sdk.playing import DOER, acted, discovered

Steps = list[dict[str, Any]]
REPLY, FORWARD, FAIL = {"reply": {"message": "r"}}, {"forward": {"id": "f"}}, {"fail": {"message": "no"}}
A, B, C = ({"effect": {"id": name}} for name in "abc")
SYNC = {"effect": {"id": "s", "synchronous": True}}


def asking(*groups: Steps) -> actions.Request:
    """A request with groups of steps."""
    return actions.Request(groups=[actions.ProcessGroup(steps=[actions.ProcessStep(**step) for step in steps]) for steps in groups])


def replying(text: str, *more: dict[str, Any]) -> Steps:
    return [{"reply": {"message": text}}, *more]


async def test_verify_action_entity_discovery(channel: grpc.aio.Channel) -> None:
    found = await discovered(channel, DOER)
    assert found == entity_pb2.Entity(entity_type="cloudstate.action.ActionProtocol", service_name=DOER)


UNARY: list[tuple[str, Steps, str]] = [
    ("verify unary command reply", [REPLY], "=r"),
    ("verify unary command reply with side effect", [REPLY, A], "=r a"),
    ("verify unary command reply with synchronous side effect", [REPLY, SYNC], "=r s*"),
    ("verify unary command reply with multiple side effects", [REPLY, A, SYNC, C], "=r a s* c"),
    ("verify unary command no reply", [], ""),
    ("verify unary command no reply with side effect", [A], " a"),
    ("verify unary command no reply with synchronous side effect", [SYNC], " s*"),
    ("verify unary command no reply with multiple side effects", [A, B, C], " a b c"),
    ("verify unary command forward", [FORWARD], "-> f"),
    ("verify unary command forward with side effect", [FORWARD, A], "-> f a"),
    ("verify unary command forward with synchronous side effect", [FORWARD, SYNC], "-> f s*"),
    ("verify unary command forward with multiple side effects", [FORWARD, A, B], "-> f a b"),
    ("verify unary command failure", [FAIL], "! no"),
    ("verify unary command failure with side effect", [A, FAIL], "! no a"),
    ("verify unary command failure with synchronous side effect", [SYNC, FAIL], "! no s*"),
    ("verify unary command failure with multiple side effects", [A, B, C, FAIL], "! no a b c"),
]


@pytest.mark.parametrize(("steps", "expected"), [case[1:] for case in UNARY], ids=[case[0] for case in UNARY])
async def test_unary(channel: grpc.aio.Channel, steps: Steps, expected: str) -> None:
    assert await acted(channel, "Unary", asking(steps)) == [expected]


STREAMED_IN: list[tuple[str, list[Steps], str]] = [
    ("verify streamed-in command reply", [replying("1"), replying("2"), replying("3")], "=3"),
    ("verify streamed-in command reply with side effects", [replying("1", A), replying("2", B), replying("3", SYNC)], "=3 a b s*"),
    ("verify streamed-in command no reply (no requests)", [], ""),
    ("verify streamed-in command no reply", [[], []], ""),
    ("verify streamed-in command no reply with side effects", [[A], [B]], " a b"),
    ("verify streamed-in command forward", [[REPLY], [FORWARD]], "-> f"),
    ("verify streamed-in command forward with side effects", [[A], [FORWARD, B]], "-> f a b"),
    ("verify streamed-in command failure", [[REPLY], [FAIL]], "! no"),
    ("verify streamed-in command failure with side effects", [[REPLY, A], [B, FAIL]], "! no a b"),
]


@pytest.mark.parametrize(("requests", "expected"), [case[1:] for case in STREAMED_IN], ids=[case[0] for case in STREAMED_IN])
async def test_streamed_in(channel: grpc.aio.Channel, requests: list[Steps], expected: str) -> None:
    assert await acted(channel, "StreamedIn", *(asking(steps) for steps in requests)) == [expected]


STREAMED: list[tuple[str, list[Steps], list[str]]] = [
    ("command replies and side effects", [replying("1"), replying("2", A), replying("3", B, SYNC)], ["=1", "=2 a", "=3 b s*"]),
    ("command no replies and side effects", [[A], [B, SYNC]], [" a", " b s*"]),
    ("command forwards and side effects", [[FORWARD], [FORWARD, A]], ["-> f", "-> f a"]),
    ("command failures and side effects", [replying("1"), [A, FAIL], replying("never")], ["=1", "! no a"]),
]


@pytest.mark.parametrize(("groups", "expected"), [case[1:] for case in STREAMED], ids=[f"verify streamed-out {case[0]}" for case in STREAMED])
async def test_streamed_out(channel: grpc.aio.Channel, groups: list[Steps], expected: list[str]) -> None:
    assert await acted(channel, "StreamedOut", asking(*groups)) == expected


@pytest.mark.parametrize(("groups", "expected"), [case[1:] for case in STREAMED], ids=[f"verify streamed {case[0]}" for case in STREAMED])
async def test_streamed(channel: grpc.aio.Channel, groups: list[Steps], expected: list[str]) -> None:
    assert await acted(channel, "Streamed", *(asking(steps) for steps in groups)) == expected
