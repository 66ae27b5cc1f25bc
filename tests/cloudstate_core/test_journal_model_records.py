"""Exhaustive exploration of the two small protocols of the journal: swaps of a record that has no owner, and cursors of a shard's readers.

Messages are delayed, lost (never delivered) or late (delivered after the sender has given up waiting). Each guard is also taken away in turn,
by showing the rule what it hopes to see; the exploration must then find the violation that the guard is there for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import pytest

from cloudstate_core.journal import rules
from cloudstate_core.journal.api import At, Claim, Claimed, Commit, EntityKey, Stored, Swap, Swapped, Token, Value

ENTITY, ROW = EntityKey("sets", "one"), rules.ShardRow(0, b"", 0, "")
State = TypeVar("State")


class Violation(Exception):
    """The first one ends the exploration."""


def explore(start: State, successors: Callable[[State], Iterator[State]]) -> tuple[str, int]:
    """The first violation ('' = none) and how many states were seen."""
    seen, frontier = {start}, [start]
    while frontier:
        following = []
        for state in frontier:
            try:
                for successor in successors(state):
                    if successor not in seen:
                        seen.add(successor)
                        following.append(successor)
            except Violation as violation:
                return str(violation), len(seen)
        frontier = following
    return "", len(seen)


# Records ----------------------------------------------------------------------------------------------------------------


class Sent(NamedTuple):
    """A swap on its way: who sent which write, the version that it expects and the write that it has seen there."""

    writer: int
    write: int
    expected: int
    seen: int
    deletes: bool


class Told(NamedTuple):
    """Its answer: the record as it is now, as far as the writer can know."""

    writer: int
    write: int
    version: int
    seen: int


class Record(NamedTuple):
    """The record and who knows what of it. Every swap writes something that nobody wrote before: `write` tells which."""

    version: int = 0
    write: int = -1
    known: tuple[tuple[int, int], ...] = ((0, -1), (0, -1))
    """Version and write that each writer has seen last."""
    waiting: tuple[int, ...] = (-1, -1)
    """The write whose answer each writer waits for."""
    messages: frozenset[Sent | Told] = frozenset()
    made: int = 0


def put(items: tuple[State, ...], place: int, item: State) -> tuple[State, ...]:
    return (*items[:place], item, *items[place + 1 :])


def record_successors(without: str, swaps: int) -> Callable[[Record], Iterator[Record]]:
    """Two writers replace a record that they have read, or delete it; `lost`: something is replaced that its replacer has not seen."""

    def deliver(state: Record, message: Sent) -> Record:
        operation = Swap(0, ENTITY, message.expected, None if message.deletes else Value("t", b""))
        present = Stored(message.expected if without == "version" else state.version, None)
        outcome = rules.swap(ROW, present, operation)
        left = state.messages - {message}
        if isinstance(outcome, Swapped):
            if message.seen != state.write:
                raise Violation("lost")
            version = 0 if message.deletes and without == "tombstone" else outcome.version
            return state._replace(version=version, write=message.write, messages=left | {Told(message.writer, message.write, version, message.write)})
        assert isinstance(outcome, Stored)
        return state._replace(messages=left | {Told(message.writer, message.write, outcome.version, state.write)})

    def successors(state: Record) -> Iterator[Record]:
        for message in state.messages:
            if isinstance(message, Sent):
                yield deliver(state, message)
            elif state.waiting[message.writer] == message.write:
                known = put(state.known, message.writer, (message.version, message.seen))
                yield state._replace(known=known, waiting=put(state.waiting, message.writer, -1), messages=state.messages - {message})
        for writer in (0, 1):
            if state.waiting[writer] >= 0:  # gives up waiting, and reads
                known = put(state.known, writer, (state.version, state.write))
                yield state._replace(known=known, waiting=put(state.waiting, writer, -1))
            elif state.made < swaps:
                for deletes in (False, True):
                    sent = Sent(writer, state.made, *state.known[writer], deletes)
                    waiting = put(state.waiting, writer, state.made)
                    yield state._replace(waiting=waiting, messages=state.messages | {sent}, made=state.made + 1)

    return successors


def test_no_swap_replaces_what_its_sender_has_not_seen() -> None:
    violation, states = explore(Record(), record_successors("", 4))
    assert violation == ""
    assert states > 50_000, "the exploration got stuck early and proves nothing"


@pytest.mark.parametrize("without", ["version", "tombstone"])
def test_swaps_need_the_version_and_deletion_must_keep_it(without: str) -> None:
    assert explore(Record(), record_successors(without, 4))[0] == "lost"


# Cursors ----------------------------------------------------------------------------------------------------------------


class Progress(NamedTuple):
    """A shard, its consumer's cursor, and two owners that consume in turn."""

    epoch: int = 0
    nonce: bytes = b""
    cursor: int = 0
    tokens: tuple[Token | None, ...] = (None, None)
    handled: tuple[int, ...] = (0, 0)
    """The offset that each owner has come to."""
    messages: frozenset[tuple[Token, int]] = frozenset()
    """Commits on their way."""
    claims: int = 0


def cursor_successors(without: str) -> Callable[[Progress], Iterator[Progress]]:
    """`late`: a commit is carried out after the shard has gone to another; `backwards`: the cursor falls, so that more is handled twice than
    after any crash."""

    def deliver(state: Progress, message: tuple[Token, int]) -> Progress:
        token, offset = message
        row = rules.ShardRow(state.epoch, token.nonce if without == "fence" else state.nonce, 0, "")
        outcome = rules.commit(row, 0 if without == "upwards" else state.cursor, Commit(0, token, "c", offset))
        left = state.messages - {message}
        if not isinstance(outcome, At):
            return state._replace(messages=left)
        if token.nonce != state.nonce:
            raise Violation("late")
        if outcome.offset < state.cursor:
            raise Violation("backwards")
        return state._replace(cursor=outcome.offset, messages=left)

    def successors(state: Progress) -> Iterator[Progress]:
        for message in state.messages:
            yield deliver(state, message)
        for owner, (token, handled) in enumerate(zip(state.tokens, state.handled, strict=True)):
            if state.claims < 3:
                claimed = rules.claim(rules.ShardRow(state.epoch, state.nonce, 0, ""), Claim(0, -1, 0, "o", bytes([state.claims + 1])))
                assert isinstance(claimed, Claimed)
                yield state._replace(
                    epoch=claimed.token.epoch,
                    nonce=claimed.token.nonce,
                    tokens=put(state.tokens, owner, claimed.token),
                    handled=put(state.handled, owner, state.cursor),
                    claims=state.claims + 1,
                )
            if token is not None and handled < 3:
                yield state._replace(handled=put(state.handled, owner, handled + 1), messages=state.messages | {(token, handled + 1)})

    return successors


def test_a_cursor_only_grows_and_only_under_the_current_token() -> None:
    violation, states = explore(Progress(), cursor_successors(""))
    assert violation == ""
    assert states > 5_000, "the exploration got stuck early and proves nothing"


@pytest.mark.parametrize(("without", "found"), [("fence", "late"), ("upwards", "backwards")])
def test_commits_need_the_fence_and_the_larger_offset(without: str, found: str) -> None:
    assert explore(Progress(), cursor_successors(without))[0] == found
