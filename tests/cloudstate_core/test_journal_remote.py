"""The journal over a connection that breaks: every batch is answered exactly once, and never with a guess."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grpc
import pytest

from cloudstate_core.hashing import HASH_NAME
from cloudstate_core.journal import wire
from cloudstate_core.journal.api import (
    Check,
    EntityKey,
    Found,
    Incompatible,
    Journal,
    JournalError,
    Layout,
    Lookup,
    Operation,
    Outcome,
    Refused,
    Token,
    Uninitialised,
    Unknown,
)
from cloudstate_core.journal.memory import MemoryJournal
from cloudstate_core.journal.remote import MAX_OUTSTANDING, RemoteJournal
from cloudstate_core.journal.server import JournalServer
from cloudstate_core.transport import api

PATIENCE = 60
ASK = Check(9, Token(0, b""))


class FakeTransport:
    """What a remote journal does with its transport, and timers that go off when told."""

    def __init__(self) -> None:
        self.streams = 0
        self.sent: list[Any] = []
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.half_closed: list[int] = []

    def connect(self, target: str) -> int:
        return 1

    def open(self, upstream: int, path: str) -> int:
        self.streams += 1
        return self.streams

    def send(self, stream: int, message: bytes) -> None:
        self.sent.append(wire.decode_request(message))

    def half_close(self, stream: int) -> None:
        self.half_closed.append(stream)

    def after(self, delay: float, callback: Callable[[], None]) -> int:
        self.timers.append((delay, callback))
        return len(self.timers)


class Session:
    """A remote journal on a fake transport."""

    def __init__(self) -> None:
        self.transport = FakeTransport()
        self.told: list[Journal | JournalError] = []
        self.answers: list[Sequence[Outcome]] = []
        self.journal = RemoteJournal(self.transport, "there:1", "ks", 4, self.told.append)  # type: ignore[arg-type]

    def hear(self, message: Any) -> None:
        assert self.journal.on_event((api.STREAM_MESSAGE, self.transport.streams, wire.encode(message), None))

    def opened(self, journal_id: str = "first") -> None:
        self.hear(wire.Opened(Layout(journal_id, 4, HASH_NAME, 1)))

    def lose(self) -> None:
        assert self.journal.on_event((api.STREAM_CLOSED, self.transport.streams, b"", (14, "gone", [], False)))

    def reconnect(self) -> None:
        self.transport.timers.pop()[1]()

    def submit(self, *operations: Operation) -> None:
        self.journal.submit(operations or (ASK,), self.answers.append)


@pytest.fixture
def session() -> Session:
    made = Session()
    made.opened()
    return made


def reasons(session: Session) -> list[tuple[type, str]]:
    return [(type(outcome), outcome.reason) for outcomes in session.answers for outcome in outcomes]  # type: ignore[union-attr]


def test_a_session_begins_with_the_keyspace_and_is_told_once(session: Session) -> None:
    assert session.transport.sent == [wire.Open("ks", 4)]
    session.lose()
    session.reconnect()
    session.opened()
    assert session.told == [session.journal]


def test_answers_are_matched_by_number(session: Session) -> None:
    session.submit()
    session.submit()
    session.hear(wire.Outcomes(2, [Found(b"two")]))
    session.hear(wire.Outcomes(1, [Found(b"one")]))
    session.hear(wire.Outcomes(1, [Found(b"again")]))
    assert session.answers == [[Found(b"two")], [Found(b"one")]]


def test_what_was_sent_is_unknown_when_the_connection_is_lost_and_told_once(session: Session) -> None:
    session.submit(ASK, ASK)
    session.lose()
    assert [kind for kind, _ in reasons(session)] == [Unknown, Unknown]
    session.reconnect()
    session.opened()
    session.hear(wire.Outcomes(1, [Uninitialised(), Uninitialised()]))
    assert len(session.answers) == 1


def test_a_receiver_that_fails_costs_no_other_its_answer(session: Session) -> None:
    session.journal.submit([ASK], lambda outcomes: 1 / 0)  # type: ignore[arg-type, return-value]
    session.submit()
    session.lose()
    assert [kind for kind, _ in reasons(session)] == [Unknown]


def test_what_was_not_sent_is_refused(session: Session) -> None:
    session.lose()
    session.submit()
    session.reconnect()
    session.submit()
    assert reasons(session) == [(Refused, "journal at there:1: cannot be reached; nothing was sent")] * 2
    session.opened()
    session.submit()
    assert session.transport.sent[-1] == wire.Batch(1, [ASK])


def test_reconnects_back_off_and_start_over_once_a_session_stands(session: Session) -> None:
    delays = []
    for _ in range(8):
        session.lose()
        delays.append(session.transport.timers[-1][0])
        session.reconnect()
    assert delays == sorted(delays)
    assert delays[-1] == 2.0
    session.opened()
    session.lose()
    assert session.transport.timers[-1][0] == delays[0]


def test_a_store_that_came_back_as_another_is_refused_for_good(session: Session) -> None:
    session.lose()
    session.reconnect()
    session.opened("second")
    session.submit()
    session.lose()
    session.reconnect()
    session.opened("first")
    session.submit()
    assert [kind for kind, _ in reasons(session)] == [Refused, Refused]
    assert all("was first and is now second" in reason for _, reason in reasons(session))


def test_a_keyspace_that_is_rejected_at_first_is_told_and_not_tried_again() -> None:
    session = Session()
    session.hear(wire.Rejected("has 8 shards"))
    session.lose()
    (error,) = session.told
    assert isinstance(error, Incompatible)
    assert "has 8 shards" in str(error)
    assert not session.transport.timers


def test_a_rejection_of_a_later_session_is_tried_again(session: Session) -> None:
    session.lose()
    session.reconnect()
    session.hear(wire.Rejected("another process has it open"))
    session.lose()
    session.reconnect()
    session.opened()
    session.submit()
    assert session.transport.sent[-1] == wire.Batch(1, [ASK])


def test_outstanding_batches_are_bounded(session: Session) -> None:
    for _ in range(MAX_OUTSTANDING + 1):
        session.submit()
    assert [kind for kind, _ in reasons(session)] == [Refused]


def test_a_closed_journal_sends_nothing_more(session: Session) -> None:
    session.submit()
    session.journal.close()
    session.submit()
    assert session.transport.half_closed == [1]
    assert reasons(session) == [(Refused, "journal at there:1: is closed")]
    session.hear(wire.Outcomes(1, [Uninitialised()]))
    session.lose()
    assert len(session.answers) == 2
    assert not session.transport.timers


# The server ---------------------------------------------------------------------------------------------------------------


class Held(MemoryJournal):
    """Answers, on a thread of its own, once it is let go."""

    def __init__(self, keyspace: str, shard_count: int) -> None:
        super().__init__(keyspace, shard_count)
        self.go_on = threading.Event()
        self.submitted = 0

    def submit(self, operations: Sequence[Operation], done: Callable[[Sequence[Outcome]], None]) -> None:
        self.submitted += 1

        def later() -> None:
            self.go_on.wait(PATIENCE)
            super(Held, self).submit(operations, done)

        threading.Thread(target=later).start()


@pytest.fixture
def held() -> Iterator[list[Held]]:
    """The journals that the server under test opened."""
    journals: list[Held] = []
    yield journals
    for journal in journals:
        journal.go_on.set()


async def talk(held: list[Held], *frames: bytes, while_held: Callable[[], None] = lambda: None) -> tuple[list[Any], grpc.StatusCode, str]:
    """Send frames and half-close; the answers and the status of the session."""

    def open_keyspace(keyspace: str, shard_count: int) -> Journal:
        held.append(Held(keyspace, shard_count))
        return held[-1]

    server = JournalServer(open_keyspace)
    port = await server.start("127.0.0.1", 0)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call: Any = channel.stream_stream(wire.PATH)()
        answers = []
        try:
            for frame in frames:
                await call.write(frame)
            with contextlib.suppress(grpc.aio.BaseError):  # the server may have refused the session already
                await call.done_writing()
            async for answer in call:
                answers.append(wire.decode_response(answer))
                for journal in held:
                    journal.go_on.set()
        except grpc.aio.AioRpcError:
            pass
        status, details = await call.code(), await call.details()
    await server.stop()
    return answers, status, details


async def test_a_session_that_ends_is_still_answered(held: list[Held]) -> None:
    batches = [wire.encode(wire.Batch(n, [Lookup(0, EntityKey("a", "b"), "c")])) for n in range(20)]
    answers, status, _ = await asyncio.wait_for(talk(held, wire.encode(wire.Open("ks", 4)), *batches), PATIENCE)
    assert isinstance(answers[0], wire.Opened)
    assert sorted(answer.number for answer in answers[1:]) == list(range(20))
    assert all(answer.outcomes == [Found(None)] for answer in answers[1:])
    assert status == grpc.StatusCode.OK


@pytest.mark.parametrize("first", [b"\xc1 no frame", b"", wire.encode(wire.Batch(1, []))])
async def test_a_session_must_begin_with_open(held: list[Held], first: bytes) -> None:
    answers, status, details = await asyncio.wait_for(talk(held, first), PATIENCE)
    assert (answers, status) == ([], grpc.StatusCode.INVALID_ARGUMENT)
    assert "must be `open`" in details


async def test_a_session_without_a_frame_is_refused(held: list[Held]) -> None:
    _, status, _ = await asyncio.wait_for(talk(held), PATIENCE)
    assert status == grpc.StatusCode.INVALID_ARGUMENT


async def test_a_frame_that_is_none_ends_the_session_after_what_came_before(held: list[Held]) -> None:
    frames = wire.encode(wire.Open("ks", 4)), wire.encode(wire.Batch(1, [ASK])), b"\xc1"
    answers, status, details = await asyncio.wait_for(talk(held, *frames), PATIENCE)
    assert [type(answer) for answer in answers] == [wire.Opened, wire.Outcomes]
    assert status == grpc.StatusCode.INVALID_ARGUMENT
    assert "journal session" in details
