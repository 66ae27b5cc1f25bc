"""Commands of the proxy's own, which forwards, side effects and events ask of entities that other proxies have; and what is remembered of keys."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest

from cloudstate_core.hashing import shard_of
from cloudstate_core.transport import api
from cloudstate_core.transport.api import Status
from stateful_proxy.commands import MAX_PASSES
from stateful_proxy.invocation import Invocation
from stateful_proxy.ownership import Elsewhere, Unowned
from tests.stateful_proxy.dispatching import METHOD, PATH, SHARDS, TOKEN, Bench


@pytest.fixture
def bench() -> Bench:
    return Bench()


class Told:
    """Who waits for a command of our own."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def message(self, payload: bytes, headers: Any) -> None:
        self.heard.append(payload)

    def finish(self, status: int, text: str, trailers: Any) -> None:
        self.heard.append((int(status), text))


def ask(bench: Bench, told: Told) -> int:
    """A forward asks for the entity 'k', which came by two other methods."""
    call = bench.callers.attach(told)
    bench.dispatch.invoke(call, Invocation(METHOD, b"k", b"", "c1/f", ("/a.A/X", "/b.B/Y")))
    return call


def ended(bench: Bench, stream: int, status: int = 0, text: str = "", trailers: Any = (), refused: bool = False) -> None:
    assert bench.commands.on_event((api.STREAM_CLOSED, stream, b"", (status, text, list(trailers), refused)))


def test_it_is_asked_of_the_owner_with_its_id_and_its_way(bench: Bench) -> None:
    bench.around.admission, told = Elsewhere("b"), Told()
    ask(bench, told)
    assert bench.around.sent == [(PATH, b"k")]
    assert bench.around.headed == [
        [("cloudstate-hop", b"1"), ("cloudstate-chain", b"/a.A/X,/b.B/Y"), ("cloudstate-command-id", b"c1/f")],
    ]
    assert bench.commands.on_event((api.STREAM_MESSAGE, 1, b"sum", None))
    ended(bench, 1)
    assert told.heard == [b"sum", (Status.OK, "")]


def test_the_owner_knows_the_way_of_a_command_that_another_proxy_asks(bench: Bench) -> None:
    call = bench.call(b"k", picked=(b"c1/f", b"1", b"", b"/a.A/X,/b.B/Y"))
    command = bench.around.commands[0][0]
    assert (command.call, command.chain) == (call, ("/a.A/X", "/b.B/Y"))


def test_the_owners_error_is_the_commands(bench: Bench) -> None:
    bench.around.admission, told = Elsewhere("b"), Told()
    ask(bench, told)
    ended(bench, 1, Status.UNKNOWN, "no such item")
    assert told.heard == [(Status.UNKNOWN, "no such item")]


@pytest.mark.parametrize(
    "refusal", [{"trailers": [(api.REFUSED_HEADER, b"not-owner")], "status": Status.UNAVAILABLE}, {"refused": True, "status": 14}]
)
def test_a_refusal_is_tried_again_and_finds_the_shard_here(bench: Bench, refusal: dict[str, Any]) -> None:
    bench.around.admission, told = Elsewhere("b"), Told()
    call = ask(bench, told)
    ended(bench, 1, **refusal)
    bench.around.admission = TOKEN
    bench.around.fire()
    assert [command.call for command, _, _ in bench.around.commands] == [call]
    assert told.heard == []


def test_one_whose_shard_is_nobodys_waits_and_gives_up_at_last(bench: Bench) -> None:
    bench.around.admission, told = Unowned(), Told()
    ask(bench, told)
    for _ in range(MAX_PASSES):
        assert told.heard == []
        bench.around.fire()
    [(status, text)] = told.heard
    assert (status, text) == (Status.UNAVAILABLE, "not executed: no-owner;generation=9")


def test_one_that_nobody_waits_for_any_more_is_taken_back(bench: Bench) -> None:
    bench.around.admission, told = Elsewhere("b"), Told()
    call = ask(bench, told)
    assert bench.dispatch.cancel(call)
    assert bench.around.resets == [1]
    assert not bench.commands.on_event((api.STREAM_CLOSED, 1, b"", (1, "", [], False)))
    assert told.heard == []


def test_what_is_remembered_of_keys_is_bounded(bench: Bench) -> None:
    def use(first: int, count: int) -> None:
        for number in range(first, first + count):
            key = f"entity-{number:06d}"
            assert bench.commands.shard(METHOD, key) == shard_of("counter", key, SHARDS)

    use(0, 10_000)
    tracemalloc.start()
    try:
        use(10_000, 50_000)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 4_000_000
